"""`kvchat models`: the models of this machine, and the download of one."""

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from kvchat.hub import catalog
from kvchat.hub.choose import Offered, offered
from kvchat.hub.describe import Described, described
from kvchat.hub.places import at_hand
from kvchat.machine.fit import USUAL, Room, room
from kvchat.settings import config
from kvchat.terminal import tables
from kvchat.terminal.colours import console
from kvchat.terminal.tables import Column
from kvchat.terminal.text import clean, size

FITS = {"yes": "yes", "int4": "int4", "no": "no"}
COLUMNS = (
    Column("name"),
    Column("family", 5),
    Column("params", 4, right=True),
    Column("format", 2),
    Column("size", 1, right=True),
    Column("window", 3, right=True),
    Column("fits"),
)
DOWNLOADS = (
    Column("name"),
    Column("download", 1, right=True),
    Column("format", 4),
    Column("window", 3, right=True),
    Column("needs", 2, right=True),
    Column("fits"),
    Column("licence", 1),
)

models = typer.Typer(help="Local models; `pull` downloads one.", invoke_without_command=True)


@models.callback()
def show(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, all fields.")] = False,
) -> int:
    """The models of this machine: bundled, under models/, aliases, in the Hugging Face cache, of
    LM Studio, llama.cpp and ollama. The names are what -m takes."""
    if context.invoked_subcommand:
        return 0
    options = config.settle({}, config.load())
    here = room(options.device, options.mem_limit)
    found = [described(each, here) for each in at_hand(options.aliases)]
    if as_json:
        print(json.dumps(report(found, here)))
    else:
        table(found, here)
    return 0


def report(found: list[Described], here: Room) -> dict[str, Any]:
    """Everything, for `--json`."""
    return {
        "schema": 1,
        "device": here.device,
        "free": here.free,
        "tokens": USUAL,
        "models": [asdict(each) | {"path": str(each.path)} for each in found],
        "downloads": [
            {
                "name": each.entry.name,
                "source": each.entry.source,
                "bytes": each.entry.bytes,
                "licence": each.entry.licence,
                "window": each.entry.window,
                "needed": each.needed,
                "fits": each.fits,
            }
            for each in offered(here, None)
        ],
    }


def table(found: list[Described], here: Room) -> None:
    """The table for the eye: what can be loaded by place, below it what cannot, and why."""
    out = console()
    able = [each for each in found if not each.reason]
    rows: list[str | tuple[str, ...]] = []
    for each in able:
        if (place := clean(each.place)) not in rows:
            rows.append(place)
        rows.append((f"  {clean(each.name)}", *cells(each)))
    for line in tables.lines(COLUMNS, rows, tables.columns_of(out)):
        out.print(Text(line, "dim" if line in rows else ""), soft_wrap=True)
    if refused := [each for each in found if each.reason]:
        out.print("cannot be loaded:")
        for each in refused:
            line = f"  {clean(each.name)} ({each.place}): {clean(each.reason)}"
            out.print(Text(line), overflow="fold")
    out.print(
        Text(f"fits: with a document of {USUAL:,} tokens, {here}; int4: with --weights int4", "dim")
    )
    if here.free and any(not each.chat and not each.toy for each in able):
        bare = ", ".join(clean(each.name) for each in able if not each.chat and not each.toy)
        out.print(Text(f"without a chat template: {bare}", "dim"))
    names = ", ".join(entry.name for entry in catalog.entries())
    out.print(f"kvchat models pull NAME downloads one: {names}, or ORG/REPO")


def cells(model: Described) -> tuple[str, ...]:
    """The columns behind the name."""
    return (
        clean(model.family),
        parameters(model.parameters),
        clean(model.format),
        size(model.bytes),
        window(model.window),
        FITS[model.fits],
    )


def parameters(count: int) -> str:
    """`1.1 M`, `135 M`, `8.0 B`."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} B"
    return f"{count / 1e6:.{0 if count >= 1e7 else 1}f} M"


def window(tokens: int) -> str:
    """`128K` as `--ctx-size` takes it, or the number."""
    return f"{tokens // 1024}K" if tokens % 1024 == 0 else f"{tokens:,}"


@models.command("pull")
def pull(
    name: Annotated[
        str | None,
        typer.Argument(help="A name of the table, org/repo, org/repo:Q5_K_M, or an alias."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    file: Annotated[str | None, typer.Option(help="A GGUF file of the repository.")] = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> int:
    """Download a model from Hugging Face; goes on where an earlier download ended.

    Of a repository of GGUF files Q4_K_M is taken, or what is named. Without a name: the table of
    models that are known, with their licences and what they need here.
    """
    if name is None:
        options = config.settle({}, config.load())
        here = room(options.device, options.mem_limit)
        downloads(offered(here, None), here)
        return 0
    # the library behind it is heavy
    from kvchat.hub import pull

    return pull.run(name, revision, yes, file)


def downloads(rows: list[Offered], here: Room) -> None:
    """The table of what can be downloaded."""
    out = console()
    shown = [
        (
            each.entry.name,
            size(each.entry.bytes),
            each.entry.format,
            window(each.entry.window),
            size(each.needed),
            "yes" if each.fits else "no",
            each.entry.licence,
        )
        for each in rows
    ]
    for line in tables.lines(DOWNLOADS, shown, tables.columns_of(out)):
        out.print(Text(line), soft_wrap=True)
    out.print(Text(f"needs: with a document of {USUAL:,} tokens; {here}", "dim"))
    out.print("kvchat models pull NAME, or ORG/REPO of Hugging Face")
