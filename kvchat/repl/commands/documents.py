"""Commands about what is read: files, the system text, nothing at all."""

import shlex
from collections.abc import Sequence
from itertools import count

from kvchat import documents
from kvchat.chat.cache_views import near
from kvchat.chat.chatlog import new_path
from kvchat.chat.chatlog_writer import Keeper
from kvchat.chat.sources import open_document
from kvchat.errors import KvchatError
from kvchat.repl.commands.context import Context
from kvchat.terminal.key_prompt import typed_text
from kvchat.terminal.text import size


def file(context: Context, argument: str) -> None:
    """attach documents; all are read again as one

    Quotes keep spaces in a name together. The turns so far stay.
    """
    chat = context.chat
    if not argument:
        raise KvchatError("usage", "/file needs the path of a document", "/file book.txt", "/files")
    try:
        paths = shlex.split(argument)
    except ValueError as error:
        raise KvchatError("usage", f"/file: {error}", "/file 'a name.txt'") from None
    attach(context, [open_document(path, chat.options) for path in paths])


def attach(context: Context, added: Sequence[documents.Document]) -> None:
    """Read documents together with those that are there."""
    chat = context.chat
    # what reads imports torch, here and below
    from kvchat.chat import attach as attaching

    if attaching.attach(chat, context.screen, added):
        context.keeper.changed(chat)


def drop(context: Context, argument: str) -> None:
    """take away a document, by its number in /files

    What is left is read again as one, with the turns so far.
    """
    chat = context.chat
    there = len(chat.book.files)
    if not there:
        raise KvchatError("usage", "there is no document to drop", "/file book.txt")
    if not (argument.isascii() and argument.isdecimal() and 1 <= int(argument) <= there):
        raise KvchatError("usage", f"/drop takes a number from 1 to {there}", "/files")
    number = int(argument) - 1
    gone = chat.book.files[number]
    from kvchat.chat import attach as attaching

    if attaching.leave_out(chat, context.screen, number):
        context.keeper.changed(chat)
        context.screen.tell(f"{gone.title} dropped")


def paste(context: Context, argument: str) -> None:
    """type or paste a document; Ctrl-D ends it

    It is read like a file, together with those that are there, and saved with the chat.
    """
    text = typed_text("paste or type; Ctrl-D on an empty line ends it, Ctrl-C forgets it")
    if text is None or not text.strip():
        context.screen.tell("nothing was pasted")
        return
    attach_text(context, text)


def attach_text(context: Context, text: str) -> None:
    """Read a text that was pasted together with the documents that are there."""
    there = {each.title for each in context.chat.book.files}
    name = next(f"pasted {n}" for n in count(1) if f"pasted {n}" not in there)
    attach(context, [documents.decode(name, text.encode("utf-8", "replace"))])


def files(context: Context, argument: str) -> None:
    """the documents with their tokens and places"""
    book = context.chat.book
    if not book.files:
        context.screen.tell("no document; /file PATH reads one")
        return
    begin = 0
    for number, (each, tokens) in enumerate(zip(book.files, near(context.chat), strict=True), 1):
        places = f", {len(each.places):,} {each.unit}" if len(each.places) > 1 else ""
        about = "about " if len(book.files) > 1 or book.cut else ""
        context.screen.tell(
            f"  {number}  {each.title} · {size(each.size)}, {each.encoding}{places} · {about}"
            f"{tokens:,} tokens from {begin:,} on"
        )
        begin += tokens
    if book.cut:
        context.screen.tell(f"  {book.cut}")


def system(context: Context, argument: str) -> None:
    """show the system text, or `/system TEXT`: change it, which reads the document again

    `/system -` takes it away.
    """
    chat = context.chat
    if not argument:
        context.screen.tell(chat.book.system or "no system text")
        return
    text = "" if argument == "-" else argument
    if text == chat.book.system:
        context.screen.tell("nothing has changed")
        return
    from kvchat.chat import attach as attaching

    if attaching.instruct(chat, context.screen, text):
        context.keeper.changed(chat)
        context.screen.tell("system text changed" if text else "system text taken away")


def reset(context: Context, argument: str) -> None:
    """forget everything; a new chat begins"""
    from kvchat.chat import attach as attaching

    chat = context.chat
    attaching.forget(chat)
    context.keeper.close()
    path = new_path() if chat.options.save else None
    context.keeper = Keeper(context.screen, path)
    context.screen.tell("document and conversation forgotten; /file PATH reads another")
