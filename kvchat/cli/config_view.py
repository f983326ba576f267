"""`kvchat config show`: effective settings without flags, and where they are from."""

from rich.console import Console
from rich.text import Text

from kvchat.engine.methods import DEFAULT
from kvchat.settings import config
from kvchat.terminal.text import clean

BUILT_IN = {"model": "demo", "method": DEFAULT, "budget": "25%", "max_tokens": 2048}


def show(origin: bool) -> int:
    """Every setting; those that nobody gave are built in or the model's."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    found = config.load()
    values, origins = config.settle({}, found)
    console.print(Text(f"{found.path}" + ("" if found.path.exists() else " (not there)")))
    for name in ("model", *config.SETTINGS, *config.UI):
        value = values.get(name, BUILT_IN.get(name, "-"))
        where = origins.get(name, "built in, or the model's")
        line = f"{name:<15} {clean(str(value))}"
        console.print(Text(f"{line:<40} {where}" if origin else line))
    for suffix, command in found.loaders.items():
        console.print(Text(clean(f"[loaders] {suffix} = {command}")))
    for kind in ("models", "methods"):
        for name, table in getattr(found, kind).items():
            rest = ", ".join(f"{key} = {value!r}" for key, value in table.items())
            console.print(Text(clean(f"[{kind}.{name}] {rest}")))
    return 0
