"""Options as typer takes them, made from their declarations."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from inspect import Parameter, Signature
from typing import Annotated, Any

import typer

from kvchat.settings.kinds import SWITCH
from kvchat.settings.option import Option, options_of


def typed(option: Option) -> Any:
    """The annotation of an option: text, texts or a switch; its kind reads what was typed."""
    kind: Any = list[str] | None if option.many else str | None
    choices = "" if option.kind is SWITCH else ", ".join(option.kind.choices)
    about: dict[str, Any] = {"rich_help_panel": option.panel}
    about["help"] = f"{option.help} ({choices})" if choices else option.help
    if option.kind is SWITCH:
        kind = bool | None
    else:
        about["metavar"] = option.kind.metavar
    if option.kind.choices:
        about["autocompletion"] = lambda: list(option.kind.choices)
    return Annotated[kind, typer.Option(*option.flags, **about)]


def takes(
    settings: type, common: str = ""
) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Decorator: `function(…, **given)` takes the options of a settings dataclass as flags.

    With `common`, the common ones alone, in a panel of that name.
    """

    def decorate(function: Callable[..., int | None]) -> Callable[..., int | None]:
        found = {
            name: typed(replace(each, panel=common or each.panel))
            for name, each in options_of(settings).items()
            if each.common or not common
        }
        flags = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=hint)
            for name, hint in found.items()
        ]
        own = Signature.from_callable(function).parameters.values()
        first = [each for each in own if each.kind is not Parameter.VAR_KEYWORD]
        vars(function)["__signature__"] = Signature([*first, *flags])
        function.__annotations__.update(found)
        return function

    return decorate


def readable_help() -> None:
    """Let help have colours that can be read on white and on black."""
    look: Any = import_module("typer.rich_utils")  # 50 ms that only help needs
    for name, style in list(vars(look).items()):
        if name.startswith("STYLE_") and isinstance(style, str):
            kept = [word for word in style.split() if word not in ("cyan", "green", "yellow")]
            setattr(look, name, " ".join(kept))


def group(about: str) -> typer.Typer:
    """A command with commands; without one of them it prints its help."""
    app = typer.Typer(help=about, invoke_without_command=True)

    @app.callback()
    def alone(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            readable_help()
            print(context.get_help())

    return app
