"""Commands about saved chats: name, open, list, export."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from kvchat.chat import chatlog as saved
from kvchat.chat.chatlog_writer import Keeper, turn_event
from kvchat.errors import KvchatError
from kvchat.repl.commands.context import Context
from kvchat.terminal.text import clean, counted, first_line


def save(context: Context, argument: str) -> None:
    """where the chat is saved, or `/save NAME`: give it a name

    Every turn is saved when it ends; `kvchat --resume NAME` goes on with it.
    """
    keeper = context.keeper
    if keeper.path is None:
        raise KvchatError("session", "this chat is not saved (--no-save, or the disk failed)")
    if argument:
        name = free_name(context, argument)
        keeper.rename(context.chat, name)
        context.screen.tell(f"saved as {name!r}")
        return
    turns = len(context.chat.session.turns)
    where = keeper.path if turns else "written with the first turn"
    context.screen.tell(f"{keeper.title} · {counted(turns, 'turn')} · {where}")


def rename(context: Context, argument: str) -> None:
    """give the chat a name"""
    if not argument:
        raise KvchatError("usage", "/rename needs a name", "/rename night watch")
    save(context, argument)


def fork(context: Context, argument: str) -> None:
    """go on in a copy of the chat; the original stays

    `/fork NAME` names the copy.
    """
    chat = context.chat
    if not chat.options.save:
        raise KvchatError("session", "this chat is not saved (--no-save)")
    if not chat.session.turns:
        raise KvchatError("usage", "nothing has been asked: there is nothing to copy")
    name = free_name(context, argument) if argument else ""
    old, new = context.keeper, Keeper(context.screen, saved.new_path(), name)
    new.turn(chat)  # a file begins with all the turns there are
    if new.path is None:
        return
    old.close()
    context.keeper = new
    context.screen.tell(f"going on in {new.title}; {old.title} stays as it is")


def free_name(context: Context, text: str) -> str:
    """A name that no other chat has. Raises KvchatError."""
    name = saved.checked_name(text)
    chats = [chat for chat in saved.listing() if chat.path != context.keeper.path]
    if any(chat.name == name for chat in chats):
        raise KvchatError("session", f"a chat is called {name!r} already", f"/load {name}")
    return name


def load(context: Context, argument: str) -> None:
    """list the saved chats, or `/load NAME`: go on with one of them"""
    if not argument:
        sessions(context, "")
        return
    if context.keeper.path and argument in (context.keeper.name, context.keeper.path.stem):
        raise KvchatError("usage", f"{argument} is this chat")
    # these read, and import torch
    from kvchat.chat import resume
    from kvchat.chat.prefill import Dropped

    try:
        keeper = resume.load(context.chat, context.screen, argument)
    except Dropped:
        context.screen.tell("stopped: nothing has changed")
        return
    context.keeper.close()
    context.keeper = keeper
    turns = context.chat.session.turns
    context.screen.tell(f"going on with {keeper.title}: {counted(len(turns), 'turn')}")
    if turns:
        context.screen.tell(f"  last question: {first_line(turns[-1].question)}")


def sessions(context: Context, argument: str) -> None:
    """list the saved chats, the last used first"""
    chats = saved.listing()
    for chat in chats:
        mark = "→" if chat.path == context.keeper.path else " "
        context.screen.tell(f"{mark} {saved.summary(chat)}")
    if not chats:
        context.screen.tell("no saved chats")


def export(context: Context, argument: str) -> None:
    """write the chat to FILE.md, FILE.json or FILE.txt

    Without a name it is called like the chat. A file that exists is not overwritten.
    """
    path = Path(argument or f"{context.keeper.title}.md").expanduser()
    if path.suffix not in FORMS:
        raise KvchatError(
            "usage", f"{clean(path.name)} ends with none of {', '.join(FORMS)}", "/export chat.md"
        )
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(FORMS[path.suffix](context))
    except FileExistsError:
        raise KvchatError(
            "input", f"{clean(str(path))} exists already", "/export ANOTHER.md"
        ) from None
    except OSError as error:
        raise KvchatError(
            "input", f"{clean(str(path))} cannot be written: {error.strerror}"
        ) from None
    turns = counted(len(context.chat.session.turns), "turn")
    context.screen.tell(f"{turns} written to {path}")


def completes(context: Context, typed: str) -> Iterable[str]:
    """Names of saved chats."""
    return [chat.title for chat in saved.listing()]


def _markdown(context: Context) -> str:
    parts = [f"# {context.chat.book.title or 'Chat'}"]
    for turn in context.chat.session.turns:
        parts += [f"## {turn.question}", turn.answer.strip()]
    return "\n\n".join(parts) + "\n"


def _text(context: Context) -> str:
    turns = context.chat.session.turns
    return "\n\n".join(f"> {turn.question}\n\n{turn.answer.strip()}" for turn in turns) + "\n"


def _json(context: Context) -> str:
    chat = context.chat
    turns = [turn_event(turn, None, 0) for turn in chat.session.turns]
    documents = [file.name for file in chat.book.files]
    about = {"schema": 1, "model": chat.model.name, "documents": documents, "turns": turns}
    return json.dumps(about, ensure_ascii=False, indent=1) + "\n"


FORMS: dict[str, Callable[[Context], str]] = {".md": _markdown, ".txt": _text, ".json": _json}
