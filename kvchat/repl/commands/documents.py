"""Commands about what the model is given: documents, the system prompt, nothing at all."""

import shlex
from collections.abc import Sequence
from itertools import count

from kvchat import documents
from kvchat.chat import attach as attaching
from kvchat.chat.chatlog import new_path
from kvchat.chat.chatlog_writer import ChatLogWriter
from kvchat.chat.citing import place
from kvchat.chat.sources import open_documents
from kvchat.errors import KvchatError
from kvchat.repl.commands.context import Context, number
from kvchat.repl.views import tokens_of_files
from kvchat.terminal.key_prompt import choose, typed_text
from kvchat.terminal.text import counted, size

SHOWN = 5  # passages


def file(context: Context, argument: str) -> None:
    """attach documents, or list them

    `/file PATH…` processes the documents behind those that are there, and keeps the turns so far.
    What was read stays as it is kept; each document is compressed by itself. Only where a question
    chose what is kept, or a size limits it, all are processed again. Quotes keep spaces in a name
    together; a folder or a pattern (`notes/*.md`) stands for its files. `/file -`: type or paste a
    document, Ctrl-D ends it. Without PATH: the documents with their numbers, sizes and tokens.
    """
    if not argument:
        listing(context)
        return
    if argument == "-":
        text = typed_text("paste or type; Ctrl-D on an empty line ends it, Ctrl-C forgets it")
        if text is None or not text.strip():
            context.screen.tell("nothing was pasted")
        else:
            attach_text(context, text)
        return
    try:
        paths = shlex.split(argument)
    except ValueError as error:
        raise KvchatError("usage", f"/file: {error}", "/file 'a name.txt'") from None
    attach(context, open_documents(paths, context.chat.options, context.screen))


def listing(context: Context) -> None:
    """The documents with their numbers, sizes, tokens and places."""
    book, begin = context.chat.book, 0
    if not book.files:
        context.screen.tell("no document; /file PATH attaches one")
        return
    about = "about " if len(book.files) > 1 or book.cut else ""
    tokens = tokens_of_files(context.chat)
    for index, (each, several) in enumerate(zip(book.files, tokens, strict=True), 1):
        places = f", {len(each.places):,} {each.unit}" if len(each.places) > 1 else ""
        context.screen.tell(
            f"  {index}  {each.title} · {size(each.size)}, {each.encoding}{places} · {about}"
            f"{several:,} tokens from {begin:,} on"
        )
        begin += several
    if book.cut:
        context.screen.tell(f"  {book.cut}")


def attach(context: Context, added: Sequence[documents.Document]) -> None:
    """Process documents together with those that are there."""
    if attaching.attach(context.chat, added):
        context.writer.changed(context.chat)


def attach_text(context: Context, text: str) -> None:
    """Process a text that was pasted together with the documents that are there."""
    there = {each.title for each in context.chat.book.files}
    name = next(f"pasted {n}" for n in count(1) if f"pasted {n}" not in there)
    attach(context, [documents.decode(name, text.encode("utf-8", "replace"))])


def drop(context: Context, argument: str) -> None:
    """remove document N of those that /file lists

    What is left is processed again, with the turns so far.
    """
    chat = context.chat
    if not chat.book.files:
        raise KvchatError("usage", "there is no document to remove", "/file book.txt")
    index = number("/drop", argument, 1, len(chat.book.files)) - 1
    gone = chat.book.files[index]
    if attaching.leave_out(chat, index):
        context.writer.changed(chat)
        context.screen.tell(f"removed {gone.title}")


def search(context: Context, argument: str) -> None:
    """find passages by their words

    Those that have TEXT as it stands come first, then those with most of its words, with the page,
    chapter or line where each stands. Nothing is asked of the model.
    """
    chat, screen = context.chat, context.screen
    if not chat.book.files or not argument:
        what = "what?" if chat.book.files else "there is no document"
        raise KvchatError("usage", f"/search: {what}", "/search old mill")
    found = chat.book.found(argument)
    if not found:
        screen.tell(f"no passage has {argument!r}, nor most of its words")
    for source in found[:SHOWN]:
        screen.passage(place(source, chat), source.text, argument.split())
    if len(found) > SHOWN:
        screen.tell(f"  and {counted(len(found) - SHOWN, 'passage')} more")


def system(context: Context, argument: str) -> None:
    """show or change the system prompt

    `/system TEXT` changes it, `/system -` removes it. It stands behind the documents, so what was
    read stays as it is and the turns alone are processed again. With `--tail` or `--tail-budget`
    the documents are too.
    """
    chat = context.chat
    if not argument:
        context.screen.tell(chat.book.system or "no system prompt")
        return
    text = "" if argument == "-" else argument
    if text == chat.book.system:
        context.screen.tell("nothing has changed")
    elif attaching.instruct(chat, text):
        context.writer.changed(chat)
        context.screen.tell(f"system prompt {'changed' if text else 'removed'}")


def reset(context: Context, argument: str) -> None:
    """drop documents, system prompt and turns

    A new chat begins; the old one stays among the saved ones. `/clear` keeps the documents.
    """
    chat = context.chat
    anything = chat.book.files or chat.book.system or chat.session.turns
    question = "drop the documents and begin a new chat? [y/N]"
    if anything and not chat.options.yes and choose(question, "yn", "n", "n") != "y":
        context.screen.tell("nothing has changed")
        return
    attaching.forget(chat)
    context.writer.close()
    path = new_path() if chat.options.save else None
    context.writer = ChatLogWriter(context.screen, path)
    context.screen.tell("a new chat; /file PATH attaches a document")
