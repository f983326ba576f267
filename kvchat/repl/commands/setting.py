"""`/set`: how answers are drawn and shown."""

from collections.abc import Iterable

from kvchat.repl.commands.context import Context
from kvchat.settings.settings import KEYS, STATS, THEMES, find_key, set_value, shown


def set_(context: Context, argument: str) -> None:
    """show the settings with their origin; `/set KEY VALUE` changes one

    Keys may be shortened. The change holds from the next answer on and is saved with the chat.
    """
    chat = context.chat
    name, _, value = argument.partition(" ")
    if name and value:
        key = find_key(name)
        chat.settings = set_value(chat.settings, key, value.strip())
        context.keeper.changed(chat)
    wanted = [find_key(name)] if name else list(KEYS)
    values = chat.settings.values()
    context.screen.rows(
        (key, shown(values[key]), chat.settings.origins.get(key, "built in")) for key in wanted
    )
    if name and not value:
        context.screen.tell(f"  takes {KEYS[wanted[0]][0]}")


def completes(context: Context, typed: str) -> Iterable[str]:
    """Keys, then values of those that have few."""
    key, space, _ = typed.partition(" ")
    if not space:
        return KEYS
    values = {"stats": STATS, "markdown": ("on", "off"), "theme": THEMES}.get(key, ())
    return [f"{key} {value}" for value in values]
