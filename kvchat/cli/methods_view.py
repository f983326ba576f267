"""`kvchat methods`: the compression methods and their options."""

from collections.abc import Iterator

from kvchat.engine.methods import DEFAULT, METHODS
from kvchat.engine.methods.spec import (
    default_of,
    method_class,
    method_name,
    options,
    presets,
)


def table() -> Iterator[str]:
    """Lines about every method: idea, paper, what it looks at, what that costs, its options."""
    for name in METHODS:
        yield from _entry(name)
        yield ""
    yield "A method with options is written NAME:key=value,… and a preset NAME@preset."
    yield "bits=8 or bits=4 (--kv-bits) stores what any but pqcache keeps quantised (KIVI,"
    yield "arXiv 2402.02750). refit=bias or refit=all fits it to what the sentences of the"
    yield "document, put as questions, read from all entries (Attention Matching, arXiv"
    yield "2602.16284)."
    yield "kvchat methods NAME tells more."


def details(name: str) -> Iterator[str]:
    """Lines about one method: its description and its options, one each.

    Raises KvchatError("usage") for a name that is not in the table.
    """
    key = method_name(name)
    yield from _entry(key)
    yield ""
    for line in (method_class(key).__doc__ or "").strip().splitlines():
        yield line.strip()
    if options(key):
        yield ""
        yield "options:"
        width = max(map(len, options(key)))
        for option, field in options(key).items():
            yield f"  {option:<{width}}  {default_of(field)}"
    for preset, values in presets(key).items():
        yield f"{key}@{preset}: " + ", ".join(f"{k}={v}" for k, v in values.items())


def _entry(name: str) -> Iterator[str]:
    entry = METHODS[name]
    yield f"{name}{'  (default)' if name == DEFAULT else ''}"
    yield f"  {entry.idea}"
    if entry.paper:
        yield f"  {entry.paper}"
    yield f"  needs {entry.needs}"
    yield f"  costs {entry.cost}"
    values = [f"{option}={default_of(field)}" for option, field in options(name).items()]
    line = "  "
    for value in [*values, *(f"@{preset}" for preset in presets(name))]:
        if len(line) + len(value) > 78:
            yield line.rstrip()
            line = "  "
        line += f"{value}  "
    if line.strip():
        yield line.rstrip()
