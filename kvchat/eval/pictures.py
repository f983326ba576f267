"""Pictures of an evaluation: heat maps of depth and length, curves of score over budget.

Optional, like `kvchat.plots`: import it when pictures are asked for.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kvchat.errors import KvchatError
from kvchat.eval.curves import Curves, Grid, curves, grids
from kvchat.eval.report import sized
from kvchat.plots import Axes, figure
from kvchat.terminal.text import clean, short

COLOURS = "cividis"  # told apart without seeing red or green, and in grey
TOLD = 12  # columns of a heat map in which figures can be read
APART = 1.15  # a share and the next one that has a tick
VIEWS = {False: "unseen", True: "seen"}


def folder(text: str) -> Path:
    """The folder that pictures go to, made if it is not there. Raises KvchatError("usage")."""
    path = Path(text).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KvchatError("usage", f"--plot {clean(text)}: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise KvchatError("usage", f"--plot {clean(text)} cannot be written to", "--plot FOLDER")
    return path


def draw(records: Sequence[dict[str, Any]], into: Path) -> Iterator[Path]:
    """Write every picture that the records are enough for; yields their paths."""
    maps: dict[tuple[str, str, bool], list[Grid]] = defaultdict(list)
    exact: dict[str, Grid] = {}
    for grid in grids(records):
        if grid.cell == "full":
            exact[grid.task] = grid
        else:
            maps[grid.task, grid.cell.partition(" ")[0], grid.seen].append(grid)
    for (task, method, seen), panels in maps.items():
        path = into / f"depth-{_name(task)}-{_name(method)}-{VIEWS[seen]}.png"
        _heat_maps(path, [exact[task], *panels] if task in exact else panels)
        yield path
    groups: dict[tuple[str, str, bool], list[Curves]] = defaultdict(list)
    for one in curves(records):
        groups[one.task, one.kind, one.seen].append(one)
    for (task, kind, seen), lengths in groups.items():
        kinds = "" if kind in task else f"-{_name(kind)}"
        path = into / f"budget-{_name(task)}{kinds}-{VIEWS[seen]}.png"
        draw_curves(path, sorted(lengths, key=lambda one: one.length))
        yield path


def _heat_maps(path: Path, panels: Sequence[Grid]) -> None:
    with figure(path, columns=len(panels)) as axes:
        for each, grid in zip(axes, panels, strict=True):
            drawn = _heat_map(each, grid)
        axes[-1].figure.colorbar(drawn, ax=axes, label="score, %", shrink=0.8)


def _heat_map(axes: Axes, grid: Grid) -> Any:
    empty = float("nan")
    scores = [[empty if score is None else 100 * score for score in row] for row in grid.scores]
    axes.grid(False)
    drawn = axes.imshow(scores, vmin=0, vmax=100, cmap=COLOURS, aspect="auto")
    view = "" if grid.cell == "full" else f", question {VIEWS[grid.seen]}"
    axes.set_title(f"{_shown(grid.task)}\n{grid.cell}{view}")
    axes.set_xticks(range(len(grid.lengths)), [_length(length) for length in grid.lengths])
    axes.set_yticks(range(len(grid.depths)), [f"{depth:.0%}" for depth in grid.depths])
    axes.set_xlabel("tokens")
    axes.set_ylabel("depth")
    if len(grid.lengths) <= TOLD:
        for y, row in enumerate(grid.scores):
            for x, score in enumerate(row):
                if score is not None:
                    ink = "black" if score > 0.5 else "white"
                    axes.text(x, y, f"{100 * score:.0f}", ha="center", va="center", color=ink)
    return drawn


def draw_curves(path: Path, panels: Sequence[Curves]) -> None:
    """Scores over budgets, a panel beside the other, as the PNG at `path`."""
    methods = dict.fromkeys(method for one in panels for method in one.methods)
    colours = {method: f"C{number}" for number, method in enumerate(methods)}  # alike in all panels
    with figure(path, columns=len(panels)) as axes:
        for each, one in zip(axes, panels, strict=True):
            _panel(each, one, colours)


def _panel(axes: Axes, one: Curves, colours: dict[str, str]) -> None:
    for method, points in one.methods.items():
        shares = [100 * point.share for point in points]
        middle = [100 * point.score.mean for point in points]
        below = [m - 100 * point.score.low for m, point in zip(middle, points, strict=True)]
        above = [100 * point.score.high - m for m, point in zip(middle, points, strict=True)]
        look = {"color": colours[method], "label": method, "capsize": 2, "elinewidth": 0.8}
        axes.errorbar(shares, middle, yerr=[below, above], **look)
    if one.full is not None:
        axes.axhline(100 * one.full, color="grey", linestyle="--", marker="", label="full")
    ticks = _ticks(100 * p.share for points in one.methods.values() for p in points)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(-3, 103)
    kind = "" if one.kind in one.task else f", {one.kind}"
    axes.set_title(f"{_shown(one.task)}{kind}\n{sized(one.length)}, question {VIEWS[one.seen]}")
    axes.set_xlabel("rows kept (pqcache: read), %")
    axes.set_ylabel("score, % (95 % interval)")
    axes.legend(fontsize=8)


def _ticks(shares: Iterable[float]) -> list[float]:
    """Shares far enough from each other for their figures to be read on a logarithmic axis."""
    ticks: list[float] = []
    for share in sorted(shares):
        if not ticks or share > APART * ticks[-1]:
            ticks.append(share)
    return ticks


def _length(length: int) -> str:
    return short(length) if length else "whole"


def _shown(task: str) -> str:
    """A task's name; of a path its end."""
    return task if len(task) <= 40 else f"…{task[-39:]}"


def _name(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^\w.@+=%-]+", "-", text).strip("-")
