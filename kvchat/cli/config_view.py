"""`kvchat config show`: effective settings without flags, and where they are from."""

from rich.console import Console
from rich.text import Text

from kvchat.settings import config
from kvchat.settings.kinds import shown
from kvchat.terminal.text import clean

USUAL = {"model": "demo", "budget": "25%", "max_tokens": 2048}


def show(origin: bool) -> int:
    """Every setting; those that nobody gave are built in or the model's."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    found = config.load()
    options = config.settle({}, found)
    console.print(Text(f"{found.path}" + ("" if found.path.exists() else " (missing)")))
    for name in (*config.DEFAULTS, *config.UI_SETTINGS):
        value = getattr(options, name)
        value = USUAL.get(name, "-") if value in (None, "") else value
        where = options.origins.get(name, "built in, or the model's")
        line = f"{name:<16} {clean(shown(value))}"
        console.print(Text(f"{line:<41} {where}" if origin else line))
    for suffix, command in found.loaders.items():
        console.print(Text(clean(f"[loaders] {suffix} = {command}")))
    for kind in ("models", "methods"):
        for name, table in getattr(found, kind).items():
            rest = ", ".join(f"{key} = {value!r}" for key, value in table.items())
            console.print(Text(clean(f"[{kind}.{name}] {rest}")))
    return 0
