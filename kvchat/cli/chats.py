"""`kvchat sessions`: list and delete saved chats."""

from typing import Annotated

import typer

from kvchat.chat import chatlog
from kvchat.cli.flags import group
from kvchat.terminal.text import clean

sessions = group("Saved chats.")


@sessions.command("list")
def show() -> int:
    """Saved chats, the last used first."""
    chats = chatlog.listing()
    for chat in chats:
        print(clean(chatlog.summary(chat)))
    if not chats:
        print(f"no saved chats in {chatlog.folder()}")
    return 0


@sessions.command("rm")
def remove(
    names: Annotated[list[str], typer.Argument(help="Names or beginnings of ids.")],
) -> int:
    """Delete saved chats."""
    for name in names:
        print(f"removed {clean(chatlog.remove(name).title)}")
    return 0
