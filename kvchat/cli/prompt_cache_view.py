"""`kvchat cache`: saved readings listed, shown, deleted. Imports no torch."""

from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvchat.cli import flags
from kvchat.prompt_cache import library
from kvchat.settings import config
from kvchat.terminal.text import clean, counted, seconds, size


def root() -> Path:
    """The folder that config and environment name."""
    values, _ = config.settle({}, config.load())
    return library.folder(values.get("kv_cache_dir"))


def show_all() -> int:
    """A line per reading, the last used first, and what they take together."""
    there = library.entries(root())
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for column in ("id", "document", "tokens", "model", "kept by", "size", "used", "saves"):
        right = column in ("tokens", "size", "saves")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for entry in there:
        table.add_row(*(Text(clean(cell)) for cell in cells(entry)))
    console = Console(highlight=False, markup=False)
    if there:
        console.print(table)
    total = sum(entry.size for entry in there)
    console.print(
        f"{counted(len(there), 'saved reading')}, {size(total)} of at most {size(library.CAP)}, "
        f"in {clean(str(root()))}",
        soft_wrap=True,
    )
    return 0


def cells(entry: library.Entry) -> list[str]:
    """The columns of a reading."""
    about = entry.about
    used = f"{datetime.fromtimestamp(entry.used):%Y-%m-%d %H:%M}"
    if entry.problem:
        return [entry.id[:8], entry.problem, "", "", "", size(entry.size), used, ""]
    return [
        entry.id[:8],
        entry.title,
        f"{int(about.get('tokens', 0)):,}",
        str(about.get("model", "?")),
        f"{about.get('method', '?')} {about.get('budget', '')}",
        size(entry.size),
        used,
        seconds(float(about["read_seconds"])) if "read_seconds" in about else "",
    ]


def show(name: str) -> int:
    """Everything that is noted about a reading."""
    entry = library.find(root(), name)
    rows: dict[str, Any] = {"file": entry.path, "size": size(entry.size)}
    rows |= {"problem": entry.problem} if entry.problem else {}
    rows |= {key: value for key, value in entry.about.items() if key != "parts"}
    rows |= {f"of {key}": value for key, value in entry.about.get("parts", {}).items()}
    width = max(map(len, rows))
    for key, value in rows.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        print(f"{clean(key):<{width}}  {clean(text)}")
    return 0


def remove(names: list[str]) -> int:
    """Delete readings. Raises KvchatError("session") at the first that is not there."""
    for name in names:
        entry = library.find(root(), name)
        library.remove(entry)
        print(f"removed {entry.id[:8]} {clean(entry.title)}, {size(entry.size)}")
    return 0


def prune(most: str | None) -> int:
    """Delete the least lately used readings until the rest fits."""
    limit = library.CAP if most is None else flags.byte_count("--max-size", most)
    gone = library.prune(root(), limit)
    freed = sum(entry.size for entry in gone)
    print(f"removed {counted(len(gone), 'saved reading')}, {size(freed)}")
    return 0
