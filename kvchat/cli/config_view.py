"""`kvchat config`: effective settings without flags, and where they are from."""

from typing import Annotated

import typer
from rich.text import Text

from kvchat.cli.flags import group
from kvchat.settings import config
from kvchat.settings.kinds import shown
from kvchat.terminal.colours import console
from kvchat.terminal.text import clean

USUAL = {"model": "demo", "budget": "25%", "max_tokens": 2048}


config_file = group("The config file.")


@config_file.command("show")
def show(
    origin: Annotated[bool, typer.Option("--origin", help="Where each value is from.")] = False,
) -> int:
    """Effective settings without any flags."""
    out = console(soft_wrap=True)
    found = config.load()
    options = config.settle({}, found)
    out.print(Text(f"{found.path}" + ("" if found.path.exists() else " (missing)")))
    for name in (*config.DEFAULTS, *config.UI_SETTINGS):
        value = getattr(options, name)
        value = USUAL.get(name, "-") if value in (None, "") else value
        where = options.origins.get(name, "built in, or the model's")
        line = f"{name:<16} {clean(shown(value))}"
        out.print(Text(f"{line:<41} {where}" if origin else line))
    for suffix, command in found.loaders.items():
        out.print(Text(clean(f"[loaders] {suffix} = {command}")))
    for kind in ("models", "methods"):
        for name, table in getattr(found, kind).items():
            rest = ", ".join(f"{key} = {value!r}" for key, value in table.items())
            out.print(Text(clean(f"[{kind}.{name}] {rest}")))
    return 0


@config_file.command("path")
def path() -> int:
    """Where the config file is."""
    print(config.config_path())
    return 0
