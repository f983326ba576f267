"""`kvchat sessions`: list and delete saved chats. Imports no torch."""

from kvchat.chat import chatlog as saved
from kvchat.terminal.text import clean


def show() -> int:
    """A line per chat, the last used first."""
    chats = saved.listing()
    for chat in chats:
        print(clean(saved.summary(chat)))
    if not chats:
        print(f"no saved chats in {saved.folder()}")
    return 0


def remove(names: list[str]) -> int:
    """Delete chats by name. Raises KvchatError("session") at the first that is not there."""
    for name in names:
        print(f"removed {clean(saved.remove(name).title)}")
    return 0
