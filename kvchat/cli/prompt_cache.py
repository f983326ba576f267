"""The commands of `kvchat cache`."""

from typing import Annotated

import typer

cache = typer.Typer(help="Documents that were read and saved.", no_args_is_help=True)


@cache.command("list")
def cache_list() -> int:
    """Saved readings, the last used first, with the seconds that each saves."""
    from kvchat.cli import prompt_cache_view as library_view

    return library_view.show_all()


@cache.command("show")
def cache_show(
    name: Annotated[str, typer.Argument(help="The beginning of an id, or a document's name.")],
) -> int:
    """Everything that is noted about one."""
    from kvchat.cli import prompt_cache_view as library_view

    return library_view.show(name)


@cache.command("rm")
def cache_rm(
    names: Annotated[list[str], typer.Argument(help="Beginnings of ids, or documents' names.")],
) -> int:
    """Delete saved readings."""
    from kvchat.cli import prompt_cache_view as library_view

    return library_view.remove(names)


@cache.command("prune")
def cache_prune(
    max_size: Annotated[
        str | None, typer.Option(help="What the rest may take: 5GiB; 0 deletes all (20GiB).")
    ] = None,
) -> int:
    """Delete the least lately used readings until the rest fits."""
    from kvchat.cli import prompt_cache_view as library_view

    return library_view.prune(max_size)
