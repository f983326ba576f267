"""`kvchat methods`: the compression methods and their options."""

from collections.abc import Iterator
from typing import Annotated

import typer

from kvchat.engine.methods import AUTO, METHODS
from kvchat.engine.methods.specs import load, method_name, options, presets


def methods(
    name: Annotated[str | None, typer.Argument(help="One method, with its options.")] = None,
) -> int:
    """The compression methods, or one of them with its options."""
    for line in table() if name is None else details(name):
        print(line)
    return 0


def table() -> Iterator[str]:
    """Lines about every method: idea, paper, what it looks at, what that costs, its options."""
    yield f"{AUTO}  (default)"
    yield "  what memory allows: every entry, every entry on disk, or the best ones"
    yield ""
    for name in METHODS:
        yield from _entry(name)
        yield ""
    yield "A method with options is written NAME:key=value,… and a preset NAME@preset."
    yield "bits=8 or bits=4 (--kv-bits) stores what any but pqcache keeps quantized (KIVI,"
    yield "arXiv 2402.02750)."
    yield "kvchat methods NAME tells more."


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
