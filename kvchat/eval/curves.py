"""What the pictures of an evaluation show, from the records alone: scores by depth and length, and
by budget. Draws nothing."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kvchat.eval.report import Estimate, estimate, worth

Record = dict[str, Any]
MOST_DEPTHS = 21  # more are put together in tenths of the document


@dataclass(frozen=True)
class Grid:
    """Mean scores of one cell: a row per depth (0 the beginning), a column per length.

    None where nothing was asked.
    """

    task: str
    cell: str
    seen: bool
    depths: list[float]
    lengths: list[int]
    scores: list[list[float | None]]


def grids(records: Iterable[Record]) -> list[Grid]:
    """A grid per task, cell and view whose answers have a depth.

    All grids of a task have the same depths and lengths.
    """
    tasks: dict[str, dict[tuple[str, bool], list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record.get("depth") is not None:
            tasks[record["task"]][record["cell"], record["seen"]].append(record)
    return [
        _grid(task, *where, found, _depths(cells), _lengths(cells))
        for task, cells in tasks.items()
        for where, found in cells.items()
    ]


def _depths(cells: dict[tuple[str, bool], list[Record]]) -> list[float]:
    found = sorted({record["depth"] for group in cells.values() for record in group})
    return found if len(found) <= MOST_DEPTHS else [tenth / 10 for tenth in range(11)]


def _lengths(cells: dict[tuple[str, bool], list[Record]]) -> list[int]:
    return sorted({record["length"] for group in cells.values() for record in group})


def _grid(
    task: str,
    cell: str,
    seen: bool,
    records: list[Record],
    depths: list[float],
    lengths: list[int],
) -> Grid:
    places: dict[tuple[float, int], list[float]] = defaultdict(list)
    for record in records:
        nearest = min(depths, key=lambda depth: abs(depth - record["depth"]))
        places[nearest, record["length"]].append(worth(record))

    def mean(depth: float, length: int) -> float | None:
        found = places.get((depth, length))
        return sum(found) / len(found) if found else None

    scores = [[mean(depth, length) for length in lengths] for depth in depths]
    return Grid(task, cell, seen, depths, lengths, scores)


@dataclass(frozen=True)
class Point:
    """A method at one budget and its score. `share` is of all rows: a budget in per cent is what is
    kept, or by pqcache read; without one it is what was kept."""

    share: float
    score: Estimate


@dataclass(frozen=True)
class Curves:
    """Methods over their budgets, for one task, length, kind of question and view; `full` is what
    the whole cache scores on the same questions."""

    task: str
    length: int
    kind: str
    seen: bool
    full: float | None
    methods: dict[str, list[Point]]


def curves(records: Iterable[Record]) -> list[Curves]:
    """A picture's worth of curves per task, length, kind and view; points by their shares."""
    groups: dict[tuple[str, int, str, bool], dict[str, list[Record]]] = defaultdict(
        lambda: defaultdict(list)
    )
    full: dict[tuple[str, int, str], list[Record]] = defaultdict(list)
    for record in records:
        where = (record["task"], record["length"], record["kind"])
        if record["cell"] == "full":
            full[where].append(record)
        else:
            groups[*where, record["seen"]][record["cell"]].append(record)
    found = []
    for (task, length, kind, seen), cells in groups.items():
        methods: dict[str, list[Point]] = defaultdict(list)
        for cell, own in cells.items():
            method, _, budget = cell.partition(" ")
            methods[method].append(_point(own, budget))
        for points in methods.values():
            points.sort(key=lambda point: point.share)
        exact = full[task, length, kind]
        best = sum(map(worth, exact)) / len(exact) if exact else None
        found.append(Curves(task, length, kind, seen, best, dict(methods)))
    return found


def _point(records: list[Record], budget: str) -> Point:
    documents: dict[int, list[float]] = defaultdict(list)
    for record in records:
        documents[record["document"]].append(worth(record))
    if budget.endswith("%"):
        share = float(budget[:-1]) / 100
    else:
        share = sum(record["kept"] for record in records) / len(records)
    return Point(share, estimate(list(documents.values())))
