"""Commands about saved chats: name, branch, open, list, export, copy."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kvchat.chat import chatlog, resume
from kvchat.chat import export as export_
from kvchat.chat.chatlog_names import HeldName
from kvchat.chat.chatlog_writer import ChatLogWriter, turn_event
from kvchat.chat.export import Talk
from kvchat.chat.work import Dropped
from kvchat.errors import KvchatError
from kvchat.repl.commands.context import Context, number
from kvchat.terminal import clipboard
from kvchat.terminal.markdown import code_blocks
from kvchat.terminal.text import clean, counted, first_line


def save(context: Context, argument: str) -> None:
    """save the chat as NAME

    Every turn is saved when it ends; `kvchat --resume NAME` goes on with the chat. `/save NAME`
    names a chat that has no name. One that has a name stays as it is, and you go on in a copy
    called NAME. Without NAME: where the chat is saved.
    """
    chat, writer = context.chat, context.writer
    require_saved(context)
    if not argument:
        turns = len(chat.session.all_turns)
        where = writer.path if turns else "written with the first turn"
        context.screen.tell(f"{writer.title} · {counted(turns, 'turn')} · {where}")
        return
    if not writer.name or argument == writer.name:
        rename(context, argument)
        return
    with free_name(context, argument) as name:
        copy_ = ChatLogWriter(context.screen, chatlog.new_path(), name)
        copy_.rename(chat, name)  # a file begins with all the turns there are
    if copy_.path is None:  # the disk failed, which has been said
        return
    writer.close()
    context.writer = copy_
    context.screen.tell(f"going on in {name!r}; {writer.title!r} stays as it is")


def rename(context: Context, argument: str) -> None:
    """give the chat another name

    `--resume` and `/load` find it by its former name too, until another chat has that. `/save NAME`
    leaves a chat that has a name as it is.
    """
    require_saved(context)
    if not argument:
        raise KvchatError("usage", "/rename needs a name", "/rename night watch")
    before = context.writer.name
    with free_name(context, argument) as name:
        context.writer.rename(context.chat, name)
    if context.writer.path is None:  # the disk failed, which has been said
        return
    also = f"; {before!r} still finds it" if before not in ("", name) else ""
    context.screen.tell(f"renamed to {name!r}{also}")


def require_saved(context: Context) -> None:
    """Raise KvchatError("session") if the chat has no file."""
    if context.writer.path is None:
        raise KvchatError("session", "this chat is not saved (--no-save, or the disk failed)")


@contextmanager
def free_name(context: Context, text: str) -> Iterator[str]:
    """A name that no other chat has, nor gets meanwhile. Raises KvchatError."""
    name = chatlog.checked_name(text)
    with HeldName(name):
        others = [chat for chat in chatlog.chats() if chat.path != context.writer.path]
        if any(chat.name == name for chat in others):
            raise KvchatError("session", f"a chat is called {name!r} already", f"/load {name}")
        yield name


def load(context: Context, argument: str) -> None:
    """go on with a saved chat

    Without NAME: the saved chats, the last used first.
    """
    if not argument:
        listing(context)
        return
    if context.writer.path and chatlog.find(argument, former=True).path == context.writer.path:
        raise KvchatError("usage", f"{argument} is this chat")
    try:
        writer = resume.load(context.chat, context.screen, argument)
    except Dropped:
        context.screen.tell("interrupted: nothing has changed")
        return
    context.writer.close()
    context.writer = writer
    turns = context.chat.session.turns
    context.screen.tell(f"going on with {writer.title}: {counted(len(turns), 'turn')}")
    if turns:
        context.screen.tell(f"  last question: {first_line(turns[-1].question)}")


def listing(context: Context) -> None:
    """The saved chats, with an arrow before this one."""
    chats = chatlog.listing()
    for chat in chats:
        mark = "→" if chat.path == context.writer.path else " "
        context.screen.tell(f"{mark} {chatlog.summary(chat)}")
    if not chats:
        context.screen.tell("no saved chats")


def completes(context: Context, typed: str) -> Iterable[str]:
    """Names of saved chats."""
    return [chat.title for chat in chatlog.chats()]


def copy(context: Context, argument: str) -> None:
    """copy the last answer to the clipboard

    `/copy N` copies its code block N alone.
    """
    turns = context.chat.session.turns
    if not turns:
        raise KvchatError("usage", "nothing to copy: nothing has been asked")
    text = clean(turns[-1].answer.strip())
    if argument:
        blocks = code_blocks(text)
        if not blocks:
            raise KvchatError("usage", "the last answer has no code block", "/copy")
        text = blocks[number("/copy", argument, 1, len(blocks)) - 1]
    where = clipboard.copy(text)
    context.screen.tell(f"{counted(len(text), 'character')} copied by {where}")


def export(context: Context, argument: str) -> None:
    """write the chat to FILE.md, FILE.json or FILE.txt

    Without a name it is called like the chat. A file that exists is not overwritten.
    """
    chat, name = context.chat, argument or f"{context.writer.title}.md"
    path = Path(name).expanduser()
    turns = [turn_event(turn, None, 0) for turn in chat.session.all_turns]
    files = [file.name for file in chat.book.files]
    export_.write(Talk(chat.book.title, chat.model.name, files, turns), path, "/export x.md")
    context.screen.tell(f"{counted(len(turns), 'turn')} written to {path}")
