"""Plots: a figure of some axes side by side, saved as PNG; no window is opened.

Optional: `pip install 'kvchat[plot]'`. Import this file when a plot is asked for, before work
begins: without matplotlib the import raises KvchatError("usage").
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from kvchat.errors import KvchatError
from kvchat.terminal.text import clean

try:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError:
    raise KvchatError(
        "usage",
        "plots need matplotlib, which is not installed",
        "pip install 'kvchat[plot]'",
    ) from None

Axes = Any  # matplotlib's; its types are not there where it is not installed
INCHES = (5.6, 4.2)  # of one axes
STYLE = {
    "figure.dpi": 150,
    "font.size": 10.0,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.marker": "o",
    "lines.markersize": 4.0,
    "text.parse_math": False,  # names of models and files are no formulas
}


def target(text: str) -> Path:
    """The file of a plot, checked before the work that it is to show.

    Raises KvchatError("usage") if it is no PNG or cannot be written.
    """
    path = Path(text).expanduser()
    if path.suffix.lower() != ".png":
        raise KvchatError("usage", f"{clean(text)} is not the name of a PNG file", f"{path}.png")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise KvchatError("usage", f"{clean(text)} cannot be written", f"/tmp/{path.name}")
    return path


@contextmanager
def figure(path: Path, columns: int = 1) -> Iterator[list[Axes]]:
    """`columns` axes side by side; at the end they become the PNG at `path`, whole or not at all.

    Raises KvchatError("usage") if it cannot be written.
    """
    with rc_context(STYLE):
        drawn = Figure(figsize=(INCHES[0] * columns, INCHES[1]), layout="constrained")
        FigureCanvasAgg(drawn)
        yield list(drawn.subplots(1, columns, squeeze=False)[0])
        data = BytesIO()
        drawn.savefig(data, format="png")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(data.getvalue())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise KvchatError("usage", f"{clean(str(path))}: {error.strerror}") from None
