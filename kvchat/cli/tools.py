"""The commands beside the chat: bench, eval, plan, models, sessions, config, doctor, completion."""

from typing import Annotated

import typer

from kvchat.cli import flags
from kvchat.cli.bench import bench
from kvchat.cli.eval import evaluate
from kvchat.cli.lists import specs
from kvchat.cli.prompt_cache import cache
from kvchat.engine.methods import DEFAULT

models = typer.Typer(help="Models at hand; `pull` downloads one.", invoke_without_command=True)
sessions = typer.Typer(help="Saved chats.", no_args_is_help=True)
config = typer.Typer(help="The config file.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Register everything here."""
    app.command()(bench)
    app.command("eval")(evaluate)
    app.command()(plan)
    app.command()(doctor)
    app.command()(completion)
    app.add_typer(models, name="models")
    app.add_typer(sessions, name="sessions")
    app.add_typer(cache, name="cache")
    app.add_typer(config, name="config")


def plan(
    model: flags.Model = None,
    dummy: flags.Dummy = None,
    tokens: Annotated[
        list[str] | None, typer.Option(help="Document tokens: 32k,128k (the window's parts).")
    ] = None,
    fit: Annotated[
        str | None, typer.Option(help="Memory to fit into: 24GiB. The longest document then.")
    ] = None,
    method: flags.Methods = None,
    budget: flags.Budget = None,
    ctx_size: flags.Window = None,
    prefill_chunk: flags.Chunk = None,
    dtype: flags.Dtype = None,
    weights: flags.Weights = None,
    device: Annotated[str, typer.Option(help="cpu or cuda: what to plan for.")] = "cpu",
    json_: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> int:
    """What reading needs, by arithmetic from config.json alone: nothing is loaded."""
    from kvchat.cli import plan as planning

    return planning.run(
        planning.Wanted(
            model,
            dummy,
            tokens or [],
            fit,
            specs(method, ["full", DEFAULT]),
            budget,
            flags.tokens("--ctx-size", ctx_size),
            flags.tokens("--prefill-chunk", prefill_chunk),
            dtype or "auto",
            weights or "auto",
            device,
            json_,
        )
    )


def doctor() -> int:
    """What is here and what is missing: versions, device, memory, terminal, config."""
    from kvchat.cli import doctor as examination

    return examination.run()


def completion(
    shell: Annotated[str, typer.Argument(help="bash, zsh, fish or powershell.")],
) -> int:
    """The completion script of a shell, for its startup file."""
    from kvchat.cli import shells

    return shells.run(shell)


@models.callback()
def models_list(context: typer.Context) -> int:
    """Models at hand: bundled, under models/, aliases, in the Hugging Face cache."""
    if context.invoked_subcommand:
        return 0
    from kvchat.cli import models as shelf

    return shelf.show()


@models.command("pull")
def models_pull(
    name: Annotated[str, typer.Argument(help="org/repo, or an alias with `repo`.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    yes: flags.Yes = False,
) -> int:
    """Download a model from Hugging Face; goes on where an earlier download ended."""
    from kvchat.hub import pull

    return pull.run(name, revision, yes)


@sessions.command("list")
def sessions_list() -> int:
    """Saved chats, the last used first."""
    from kvchat.cli import chats as saved_list

    return saved_list.show()


@sessions.command("rm")
def sessions_rm(
    names: Annotated[list[str], typer.Argument(help="Names or beginnings of ids.")],
) -> int:
    """Delete saved chats."""
    from kvchat.cli import chats as saved_list

    return saved_list.remove(names)


@config.command("show")
def config_show(
    origin: Annotated[bool, typer.Option("--origin", help="Where each value is from.")] = False,
) -> int:
    """Effective settings without any flags."""
    from kvchat.cli import config_view

    return config_view.show(origin)


@config.command("path")
def config_path() -> int:
    """Where the config file is."""
    from kvchat.settings.config import config_path as where

    print(where())
    return 0
