"""Files of public benchmarks that a user has on disk. Nothing is ever downloaded.

`ruler`, `longbench` and `leval` give documents as they are; `niah` is a task whose documents are
made to a length and a depth. docs/eval.md says what has to be in the files.
"""

from collections.abc import Callable
from pathlib import Path

from kvchat.errors import KvchatError
from kvchat.eval.case import Given, Task
from kvchat.eval.files import leval, longbench, niah, ruler
from kvchat.terminal.text import clean

LOADERS: dict[str, tuple[Callable[[Path], Given | Task], str]] = {
    "ruler": (ruler.read, f"every line has {ruler.FIELDS}"),
    "longbench": (longbench.read, f"every line has {longbench.FIELDS}"),
    "leval": (leval.read, f"every line has {leval.FIELDS}"),
    "niah": (niah.read, f"a JSON file with {niah.FIELDS}"),
}
"""What reads a kind of file, and what the file has to hold."""


def load(spec: str) -> Given | Task:
    """What `KIND:FILE` holds. Raises KvchatError("usage" or "input")."""
    kind, found, name = spec.partition(":")
    if not found or not name or kind not in LOADERS:
        raise KvchatError(
            "usage",
            f"--data {clean(spec)!r} is no KIND:FILE; kinds are {', '.join(LOADERS)}",
            f"--data {clean(kind if kind in LOADERS else 'ruler')}:{clean(name) or 'FILE'}",
        )
    read, holds = LOADERS[kind]
    try:
        loaded = read(Path(name).expanduser())
    except KvchatError as error:
        raise KvchatError("input", error.message, *error.tries, f"{kind}: {holds}") from None
    if isinstance(loaded, Given) and not loaded.cases:
        reasons = ", ".join(f"{count:,} × {why}" for why, count in loaded.left_out.items())
        why = f"only {reasons}" if reasons else "it is empty"
        raise KvchatError("input", f"{clean(name)} has no question that can be scored: {why}")
    return loaded
