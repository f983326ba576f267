"""Pictures of an evaluation: scores over budgets.

Optional, like `kvchat.plots`: import it when pictures are asked for.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kvchat.errors import KvchatError
from kvchat.eval.report import Row, sized
from kvchat.plots import Axes, figure
from kvchat.terminal.text import clean

APART = 1.15  # a share and the next one that has a tick
VIEWS = {False: "unseen", True: "seen"}
Panel = Sequence[Row]  # of one task, length, kind of question and view; the full cache may be there


def folder(text: str) -> Path:
    """The folder that pictures go to, made if it is missing. Raises KvchatError("usage")."""
    path = Path(text).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KvchatError("usage", f"--plot {clean(text)}: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise KvchatError("usage", f"--plot {clean(text)} cannot be written to", "--plot FOLDER")
    return path


def panels(table: Iterable[Row]) -> list[Panel]:
    """The rows of a table by task, length, kind of question and view, each with the full cache."""
    full: dict[tuple[str, int, str], Row] = {}
    groups: dict[tuple[str, int, str, bool], list[Row]] = defaultdict(list)
    for row in table:
        where = (row.task, row.length, row.kind)
        if row.cell == "full":
            full[where] = row
        else:
            groups[*where, row.seen].append(row)
    return [[*rows, *([full[at[:3]]] if at[:3] in full else [])] for at, rows in groups.items()]


def percent(row: Row) -> float:
    """The share of all entries, in per cent: a budget in per cent is what is kept, or by pqcache
    read; without one it is what was kept."""
    budget = row.cell.partition(" ")[2]
    return float(budget[:-1]) if budget.endswith("%") else 100 * row.kept


def render(table: Iterable[Row], into: Path) -> Iterator[Path]:
    """A picture per task, kind and view, a panel per length; yields their paths."""
    groups: dict[tuple[str, str, bool], list[Panel]] = defaultdict(list)
    for panel in sorted(panels(table), key=lambda panel: panel[0].length):
        groups[panel[0].task, panel[0].kind, panel[0].seen].append(panel)
    for (task, kind, seen), found in groups.items():
        parts = ["budget", task, *([] if kind in task else [kind]), VIEWS[seen]]
        name = "-".join(re.sub(r"[^\w.@+=%-]+", "-", part).strip("-") for part in parts)
        path = into / f"{name}.png"
        render_panels(path, found)
        yield path


def render_panels(path: Path, found: Sequence[Panel]) -> None:
    """Scores over budgets, a panel beside the other, as the PNG at `path`."""
    methods = dict.fromkeys(row.cell.partition(" ")[0] for panel in found for row in panel)
    colours = {method: f"C{number}" for number, method in enumerate(methods)}  # alike in all panels
    with figure(path, columns=len(found)) as axes:
        for each, panel in zip(axes, found, strict=True):
            _panel(each, panel, colours)


def _panel(axes: Axes, panel: Panel, colours: dict[str, str]) -> None:
    lines: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(panel, key=percent):
        lines[row.cell.partition(" ")[0]].append(row)
    for row in lines.pop("full", []):
        mean = 100 * row.score.mean
        axes.axhline(mean, color="grey", linestyle="--", marker="", label="full")
    for method, rows in ((method, lines[method]) for method in colours if method in lines):
        scores = [row.score for row in rows]
        below = [100 * (score.mean - score.low) for score in scores]
        above = [100 * (score.high - score.mean) for score in scores]
        look = {"color": colours[method], "label": method, "capsize": 2, "elinewidth": 0.8}
        means = [100 * score.mean for score in scores]
        axes.errorbar([percent(row) for row in rows], means, yerr=[below, above], **look)
    ticks: list[float] = []  # far enough from each other to be read on a logarithmic axis
    for share in sorted(percent(row) for rows in lines.values() for row in rows):
        if not ticks or share > APART * ticks[-1]:
            ticks.append(share)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(-3, 103)
    one = panel[0]
    task = one.task if len(one.task) <= 40 else f"…{one.task[-39:]}"  # of a path its end
    kind = "" if one.kind in one.task else f", {one.kind}"
    axes.set_title(f"{task}{kind}\n{sized(one.length)}, question {VIEWS[one.seen]}")
    axes.set_xlabel("KV pairs kept (pqcache: read), %")
    axes.set_ylabel("score, % (95 % interval)")
    axes.legend(fontsize=8)
