"""The commands beside the chat."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from kvchat.cli.bench import bench
from kvchat.cli.eval import evaluate
from kvchat.cli.flags import takes
from kvchat.cli.plan import PlanOptions
from kvchat.cli.prompt_cache import cache
from kvchat.settings.config import config_path as path_of_config
from kvchat.settings.option import read_all, shared
from kvchat.settings.options import Options

models = typer.Typer(help="Local models; `pull` downloads one.", invoke_without_command=True)
sessions = typer.Typer(help="Saved chats.", no_args_is_help=True)
config = typer.Typer(help="The config file.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Register everything here."""
    for name, command in {
        "plan": plan,
        "methods": methods,
        "bench": bench,
        "eval": evaluate,
        "demo": demo,
        "doctor": doctor,
        "completion": completion,
    }.items():
        app.command(name)(command)
    for name, group in {
        "models": models,
        "sessions": sessions,
        "cache": cache,
        "config": config,
    }.items():
        app.add_typer(group, name=name)


@takes(PlanOptions)
def plan(**given: Any) -> int:
    """What a prefill needs, by arithmetic from config.json alone: nothing is loaded."""
    from kvchat.cli import plan as planning

    return planning.run(read_all(PlanOptions, given))


@dataclass(frozen=True)
class DemoOptions:
    """Options of `kvchat demo`."""

    threads: int | None = shared(Options, "threads")
    weights: str = shared(Options, "weights")


@takes(DemoOptions)
def demo(**given: Any) -> int:
    """The bundled model reads the sample, compresses it, answers and marks its questions."""
    from kvchat.cli import demo as demonstration

    options = read_all(DemoOptions, given)
    return demonstration.run(options.threads, options.weights)


def methods(
    name: Annotated[str | None, typer.Argument(help="One method, with its options.")] = None,
) -> int:
    """The compression methods, or one of them with its options."""
    from kvchat.cli import methods_view as listing

    for line in listing.table() if name is None else listing.details(name):
        print(line)
    return 0


def doctor() -> int:
    """Check installation, devices and configuration."""
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
    """Local models: bundled, under models/, aliases, in the Hugging Face cache."""
    if context.invoked_subcommand:
        return 0
    from kvchat.cli import models as shelf

    return shelf.show()


@models.command("pull")
def models_pull(
    name: Annotated[str, typer.Argument(help="org/repo, or an alias with `repo`.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
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
    print(path_of_config())
    return 0
