"""Commands about what is read: files, the system text, nothing at all."""

import shlex
from collections.abc import Sequence
from itertools import count

from kvchat.app import documents
from kvchat.app.ask import typed_text
from kvchat.app.book import Book, compose
from kvchat.app.commands.context import Context
from kvchat.app.keeper import Keeper
from kvchat.app.methods import cost_of
from kvchat.app.models import longer_windows
from kvchat.app.options import Options
from kvchat.app.plan import make_plan
from kvchat.app.reading import read_again
from kvchat.app.saved import new_path
from kvchat.app.sources import open_document
from kvchat.app.start import chosen_method
from kvchat.app.text import size
from kvchat.app.views import near
from kvchat.engine.events import drain
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.full import Full
from kvchat.engine.methods.spec import name_of
from kvchat.errors import KvchatError


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
    for each in added:
        for notice in each.notices:
            context.screen.warn(notice)
    book = recompose(context, (*chat.book.files, *added), chat.book.system)
    method = first_method(context) if not chat.book.files else chat.method
    announce(context, book, method)
    if read_again(chat, context.screen, method, book, chat.chosen_for):
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
    left = (*chat.book.files[:number], *chat.book.files[number + 1 :])
    book = recompose(context, left, chat.book.system)
    method, questions = (chat.method, chat.chosen_for) if left else (Full(), [])
    if read_again(chat, context.screen, method, book, questions):
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
    book = recompose(context, chat.book.files, text)
    if read_again(chat, context.screen, book=book, questions=chat.chosen_for):
        context.keeper.changed(chat)
        context.screen.tell("system text changed" if text else "system text taken away")


def reset(context: Context, argument: str) -> None:
    """forget everything; a new chat begins"""
    chat, session = context.chat, context.chat.session
    book = compose(session.dialogue.tokenizer, (), "", session.limit)
    session.dialogue = book.dialogue
    drain(session.open(book.ids, Full(), session.method))
    chat.book, chat.method, chat.in_view, chat.last = book, Full(), "", None
    chat.restored = None
    context.keeper.close()
    path = new_path() if chat.options.save else None
    context.keeper = Keeper(context.screen, path)
    context.screen.tell("document and conversation forgotten; /file PATH reads another")


def recompose(context: Context, files: Sequence[documents.Document], system: str) -> Book:
    """The book of other files or another system text, for the same model."""
    session = context.chat.session
    tokenizer, limit = session.dialogue.tokenizer, session.limit
    talk = sum(len(turn.ids) for turn in session.turns)
    overflow = context.chat.options.overflow
    book = compose(tokenizer, files, system, limit - talk, overflow, longer_windows)
    if book.cut:
        context.screen.warn(f"{book.title}: {book.cut}")
    return book


def first_method(context: Context) -> Method:
    """The method that the options ask for, for the first document of a chat."""
    options: Options = context.chat.options
    method = chosen_method(options)
    if options.auto_loss is not None:
        held = f"budget {method.budget}"
        context.screen.warn(f"--auto-loss chooses when a chat starts with a document: {held}")
    return method


def announce(context: Context, book: Book, method: Method) -> None:
    """The plan of a reading, in a line."""
    engine, limit = context.chat.session.engine, context.chat.session.limit
    itemsize, tokens = engine.dtype.itemsize, len(book.ids)
    plan = make_plan(
        engine.config,
        itemsize,
        tokens,
        method.budget,
        limit,
        engine.chunk,
        cost=cost_of(method),
    )
    context.screen.tell(
        f"{tokens:,} tokens · {tokens / limit:.0%} of the {limit:,} window · plan: KV "
        f"{size(plan.kv_full)} in full → {size(plan.kv_kept)} with {name_of(method)}"
    )
