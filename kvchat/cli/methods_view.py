"""`kvchat methods`: the compression methods and their options."""

from collections.abc import Iterator
from typing import Annotated

import typer

from kvchat.engine.methods import AUTO, METHODS, UNSEEN, UNSEEN_AT_ONCE
from kvchat.engine.methods.specs import load, method_name, options, presets
from kvchat.terminal import tables
from kvchat.terminal.colours import console
from kvchat.terminal.tables import Column

COLUMNS = (Column("method"), Column("what it does"), Column("cost", 1), Column("looks at", 2))
FREE = (f"{AUTO}*", "what memory allows: all, all on disk, or the best entries", "", "")
USE = (
    f"* the default; {UNSEEN_AT_ONCE}, or {UNSEEN} without a gate, if a budget is given.",
    "streamingllm: old text does not matter. pqcache: nothing may be lost; no memory",
    "is saved, a decoded token reads less. kcache: values may stay outside a card.",
)


def methods(
    name: Annotated[str | None, typer.Argument(help="One method, with its options.")] = None,
) -> int:
    """The compression methods, or one of them with its options."""
    out = console()
    for line in table(tables.columns_of(out)) if name is None else details(name):
        print(line)
    return 0


def table(width: int = 1000) -> Iterator[str]:
    """A line for every method: what it keeps, what that costs, what it looks at."""
    rows = [(name, entry.idea, entry.cost, entry.needs) for name, entry in METHODS.items()]
    yield from tables.lines(COLUMNS, [FREE, *rows], width)
    yield ""
    yield from USE
    yield "A method with options is NAME:key=value,… and a preset NAME@preset; bits=8, 4"
    yield "or 2 (--kv-bits) keeps quantized what any keeps that does not look entries up."
    yield "kvchat methods NAME has its paper, options and cost."


def details(name: str) -> Iterator[str]:
    """Lines about one method: its description and its options, one each.

    Raises KvchatError("usage") for a name that is not in the table.
    """
    key = method_name(name)
    yield from _entry(key)
    yield ""
    for line in (load(key).__doc__ or "").strip().splitlines():
        yield line.strip()
    if options(key):
        yield ""
        yield "options:"
        width = max(map(len, options(key)))
        wide = max(len(str(option.default)) for option in options(key).values())
        for option in options(key).values():
            line = f"  {option.name:<{width}}  {option.default!s:<{wide}}  {option.help}"
            yield line.rstrip()
    for preset, values in presets(key).items():
        yield f"{key}@{preset}: " + ", ".join(f"{k}={v}" for k, v in values.items())


def _entry(name: str) -> Iterator[str]:
    entry = METHODS[name]
    yield name
    yield f"  {entry.idea}"
    if entry.paper:
        yield f"  {entry.paper}"
    yield f"  needs {entry.needs}"
    yield f"  costs {entry.cost}"
    values = [f"{option.name}={option.default}" for option in options(name).values()]
    line = "  "
    for value in [*values, *(f"@{preset}" for preset in presets(name))]:
        if len(line) + len(value) > 78:
            yield line.rstrip()
            line = "  "
        line += f"{value}  "
    if line.strip():
        yield line.rstrip()
