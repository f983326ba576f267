"""Tables whose lines do not wrap: in a narrow terminal columns are left out, no word is cut."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console

GAP = 2


@dataclass(frozen=True)
class Column:
    """A column's title; numbers stand at the `right`. Where not all fit, those of the highest
    `may_go` go first, and those of 0 never."""

    title: str
    may_go: int = 0
    right: bool = False


def lines(columns: Sequence[Column], rows: Iterable[Sequence[str] | str], width: int) -> list[str]:
    """A table in `width` columns; a row that is a text stands for itself, above those after it.

    If the columns that must stay are too wide, the first one has a line of its own.
    """
    every = list(rows)
    cells = [row for row in every if not isinstance(row, str)]
    shown = list(range(len(columns)))

    def widths() -> list[int]:
        titles = [column.title for column in columns]
        return [max(cell_len(row[n]) for row in (titles, *cells)) for n in shown]

    def total() -> int:
        return sum(widths()) + GAP * (len(shown) - 1)

    while total() > width:
        most = max(shown, key=lambda n: columns[n].may_go)
        if not columns[most].may_go:
            break
        shown.remove(most)
    alone = total() > width and len(shown) > 1
    found = widths()

    def line(row: Sequence[str]) -> str:
        parts = [
            " " * (size - cell_len(row[n])) + row[n]
            if columns[n].right
            else row[n] + " " * (size - cell_len(row[n]))
            for n, size in zip(shown, found, strict=True)
        ]
        if alone:
            return f"{row[shown[0]]}\n  {(' ' * GAP).join(parts[1:])}".rstrip()
        return (" " * GAP).join(parts).rstrip()

    title = line([column.title for column in columns])
    text = [title, *(row if isinstance(row, str) else line(row) for row in every)]
    return [part for each in text for part in each.split("\n")]


def columns_of(console: Console) -> int:
    """Columns of a table: those of the terminal; whole lines go into a pipe."""
    return console.width if console.is_terminal or "COLUMNS" in os.environ else 1000
