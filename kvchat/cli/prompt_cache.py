"""`kvchat cache`: documents of the prompt cache listed, shown, deleted."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from kvchat.cli.flags import group
from kvchat.prompt_cache import files
from kvchat.settings import config
from kvchat.settings.kinds import SIZE
from kvchat.terminal import tables
from kvchat.terminal.colours import console
from kvchat.terminal.tables import Column
from kvchat.terminal.text import clean, counted, seconds, size

COLUMNS = (
    Column("id"),
    Column("document"),
    Column("tokens", 3, right=True),
    Column("model", 4),
    Column("kept by", 2),
    Column("size", 1, right=True),
    Column("used", 5),
    Column("saves", 1, right=True),
)

cache = group("The prompt cache: compressed documents on disk.")


def root() -> Path:
    """The folder that config and environment name."""
    return files.folder(config.settle({}, config.load()).prompt_cache_dir)


@cache.command("list")
def show_all() -> int:
    """Cached documents, the last used first, with the seconds that each saves."""
    there = files.entries(root())
    out = console()
    rows = [[clean(cell) for cell in cells(entry)] for entry in there]
    if rows:
        for line in tables.lines(COLUMNS, rows, tables.columns_of(out)):
            out.print(Text(line), soft_wrap=True)
    total = sum(entry.size for entry in there)
    out.print(
        f"{counted(len(there), 'cached document')}, {size(total)} of at most {size(files.CAP)}, "
        f"in {clean(str(root()))}",
        soft_wrap=True,
    )
    return 0


def cells(entry: files.Entry) -> list[str]:
    """The columns of a document."""
    about = entry.about
    used = f"{datetime.fromtimestamp(entry.used):%Y-%m-%d %H:%M}"
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


@cache.command("show")
def show(
    name: Annotated[str, typer.Argument(help="The beginning of an id, or a document's name.")],
) -> int:
    """Everything that is noted about one."""
    entry = files.find(root(), name)
    facts: dict[str, Any] = {"file": entry.path, "size": size(entry.size)}
    facts |= {key: value for key, value in entry.about.items() if key != "parts"}
    facts |= {f"of {key}": value for key, value in entry.about.get("parts", {}).items()}
    width = max(map(len, facts))
    for key, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        print(f"{clean(key):<{width}}  {clean(text)}")
    return 0


@cache.command("rm")
def remove(
    names: Annotated[list[str], typer.Argument(help="Beginnings of ids, or documents' names.")],
) -> int:
    """Delete cached documents."""
    for name in names:
        entry = files.find(root(), name)
        files.remove(entry)
        print(f"removed {entry.id[:8]} {clean(entry.title)}, {size(entry.size)}")
    return 0


@cache.command("prune")
def prune(
    max_size: Annotated[
        str | None, typer.Option(help="What the rest may take: 5GiB; 0 deletes all (20GiB).")
    ] = None,
) -> int:
    """Delete the least recently used documents until the rest fits."""
    limit = files.CAP if max_size is None else SIZE.read("--max-size", max_size)
    gone = files.prune(root(), limit)
    freed = sum(entry.size for entry in gone)
    print(f"removed {counted(len(gone), 'cached document')}, {size(freed)}")
    return 0
