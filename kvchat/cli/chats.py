"""`kvchat sessions`: saved chats listed, shown, renamed, exported, deleted."""

from pathlib import Path
from typing import Annotated

import typer

from kvchat.chat import chatlog
from kvchat.chat.export import Talk, plain, write
from kvchat.cli.flags import group
from kvchat.errors import KvchatError
from kvchat.terminal.text import clean, counted

sessions = group("Saved chats.")
CHAT = typer.Argument(help="A name or the beginning of an id.")


@sessions.command("list")
def show() -> int:
    """Saved chats, the last used first."""
    chats = chatlog.listing()
    for chat in chats:
        print(clean(chatlog.summary(chat)))
    if not chats:
        print(f"no saved chats in {chatlog.folder()}")
    return 0


@sessions.command("show")
def show_one(name: Annotated[str, CHAT]) -> int:
    """Questions and answers of a saved chat."""
    saved = chatlog.find(name)
    print(f"{clean(chatlog.summary(saved))}\n\n{clean(plain(Talk.of(saved)))}", end="")
    return 0


@sessions.command("rename")
def rename(
    name: Annotated[str, CHAT], to: Annotated[str, typer.Argument(help="The new name.")]
) -> int:
    """Give a saved chat another name."""
    saved, new = chatlog.find(name), chatlog.checked_name(to)
    if any(chat.name == new and chat.path != saved.path for chat in chatlog.chats()):
        raise KvchatError("session", f"a chat is called {new!r} already", "another name")
    record = chatlog.Record.of(saved.path)
    try:
        record.cut(chatlog.read(saved.path).whole)  # a torn line would be one in the middle
        record.append({"event": "name", "name": new})
    except OSError as error:
        raise KvchatError("session", f"{saved.path}: {error.strerror}") from None
    finally:
        record.close()
    print(f"{clean(saved.title)} is called {new} now")
    return 0


@sessions.command("export")
def export(
    name: Annotated[str, CHAT],
    file: Annotated[
        str | None, typer.Argument(help="NAME.md, NAME.txt or NAME.json; else its name with .md.")
    ] = None,
) -> int:
    """Write a saved chat to a new file."""
    saved = chatlog.find(name)
    talk, path = Talk.of(saved), Path(file or f"{saved.title}.md").expanduser()
    write(talk, path, f"kvchat sessions export {name!r} chat.md")
    print(f"{counted(len(talk.turns), 'turn')} written to {clean(str(path))}")
    return 0


@sessions.command("rm")
def remove(
    names: Annotated[list[str], typer.Argument(help="Names or beginnings of ids.")],
) -> int:
    """Delete saved chats."""
    for name in names:
        print(f"removed {clean(chatlog.remove(name).title)}")
    return 0
