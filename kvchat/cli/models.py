"""`kvchat models`: local models, and the download of one."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvchat.engine.model.read import load_config
from kvchat.errors import KvchatError
from kvchat.hub.find import cache, demo_model, local_models
from kvchat.settings import config
from kvchat.terminal.text import clean, size

models = typer.Typer(help="Local models; `pull` downloads one.", invoke_without_command=True)


@models.callback()
def show(context: typer.Context) -> int:
    """Local models: bundled, under models/, aliases, in the Hugging Face cache."""
    if context.invoked_subcommand:
        return 0
    console = Console(highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for column in ("name", "model", "window", "size"):
        table.add_column(column, no_wrap=True, justify="right" if column == "size" else "left")
    table.add_column("where", overflow="fold")
    for name, folder in _local():
        table.add_row(*map(Text, (clean(name), *described(folder), clean(str(folder)))))
    console.print(table)
    console.print("kvchat models pull org/repo downloads one from Hugging Face")
    return 0


def _local() -> Iterator[tuple[str, Path]]:
    """Names and folders: bundled, under models/, aliases, the Hugging Face cache."""
    demo = demo_model()
    yield demo.name, demo.path
    for name, folder in local_models().items():
        if folder.resolve() != demo.path.resolve():
            yield name, folder
    for name, place in config.load().models.items():
        yield name, aliased(place)
    yield from cache()


def aliased(place: Mapping[str, Any]) -> Path:
    """The folder of an alias, there or not."""
    if "path" in place:
        return Path(place["path"]).expanduser()
    return dict(cache()).get(place["repo"], Path(f"{place['repo']} (not downloaded)"))


def described(folder: Path) -> tuple[str, str, str]:
    """Family and parameters, window, bytes of the weights; or why kvchat cannot read it."""
    if not (folder / "config.json").exists():
        return "not there", "", ""
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    try:
        model = load_config(folder)
    except KvchatError as error:
        return clean(error.message.rpartition(": ")[2][:40]), "", size(weights)
    parameters = f"{model.family}, {model.parameters / 1e9:.1f} B"
    if model.parameters < 1e8:
        parameters = f"{model.family}, {model.parameters / 1e6:.1f} M"
    return parameters, f"{model.context_limit:,}", size(weights)


@models.command("pull")
def pull(
    name: Annotated[str, typer.Argument(help="org/repo, or an alias with `repo`.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> int:
    """Download a model from Hugging Face; goes on where an earlier download ended."""
    # the library behind it is heavy
    from kvchat.hub import pull

    return pull.run(name, revision, yes)
