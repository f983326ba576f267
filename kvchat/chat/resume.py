"""Opens a chat anew, or goes on with a saved one: document, method, settings, turns come back."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kvchat import documents
from kvchat.chat import chatlog
from kvchat.chat.chat import Chat
from kvchat.chat.chatlog_names import HeldName
from kvchat.chat.chatlog_writer import ChatLogWriter, turn_of
from kvchat.chat.open import open_chat
from kvchat.chat.prefill import restore
from kvchat.chat.prepare import DOCUMENT, Prepared, restored
from kvchat.chat.setup import chosen_method
from kvchat.chat.sources import open_document
from kvchat.chat.tails import cascade_of
from kvchat.chat.work import Dropped, run, timed
from kvchat.documents.document_ids import compose
from kvchat.engine.methods.simple import Full
from kvchat.engine.session import Session
from kvchat.engine.store import tokenizer_digest
from kvchat.errors import KvchatError
from kvchat.settings.options import LIVE, SAVED_CHAT, Options
from kvchat.terminal.key_prompt import choose
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import clean, counted, first_line


def open_or_resume(
    prepared: Prepared, screen: Screen, interactive: bool = True
) -> tuple[Chat, ChatLogWriter]:
    """The chat that was prepared, and its file. Raises KvchatError."""
    options, found = prepared.options, prepared.saved
    if found is None:
        # what a program reads, a program asks: it is no chat unless it has a name
        keeps = options.save and (options.session is not None or not options.machine_readable)
        path = chatlog.new_path() if keeps else None
        name = chatlog.checked_name(options.session) if options.session else ""
        held = new_name(name) if keeps and name else None
        writer = ChatLogWriter(screen, path, name, held)
        try:
            return open_chat(prepared, screen, interactive), writer
        except BaseException:
            writer.close()
            raise
    writer, found = ChatLogWriter.of(screen, found)
    chat = open_chat(prepared, screen, interactive)
    same_tokens(chat, found)
    same_text(chat.book.files, found, screen, interactive)
    say_chosen(found, chat.in_view, screen)
    try:
        recall(chat, found)
    except Dropped:
        raise KeyboardInterrupt from None
    return chat, writer


def new_name(name: str) -> HeldName:
    """Hold the name of a chat that is not there yet. Raises KvchatError("session")."""
    held = HeldName(name)
    try:
        if chatlog.named(name):  # since it was looked for
            raise KvchatError(
                "session",
                f"another kvchat has begun a chat called {name!r}",
                f"--session {name!r} once more goes on with it",
            )
    except BaseException:
        held.free()
        raise
    return held


def same_tokens(chat: Chat, found: chatlog.Saved) -> None:
    """Raise KvchatError("session") if the saved ids belong to another tokenizer."""
    if tokenizer_digest(chat.model.text_path.resolve()) != found.chat.get("tokenizer"):
        folder = clean(str(found.chat.get("folder")))
        raise KvchatError(
            "session",
            f"{found.title} was a chat with {folder}; token ids of {chat.model.name} differ",
            f"kvchat -m {folder} --resume {found.title!r}",
        )


def same_text(
    files: Sequence[documents.Document], found: chatlog.Saved, screen: Screen, interactive: bool
) -> None:
    """Name files that are not as they were; the person may stop here."""
    known = {file["path"]: file["sha256"] for file in found.document.get("files", ())}
    for file in files:
        if file.path and known.get(file.path, file.digest) != file.digest:
            screen.warn(f"{file.title} has changed since the chat; the new text is used")
            if interactive and choose("[g]o on / [q]uit", "gq", "g", "q") == "q":
                raise KeyboardInterrupt


def say_chosen(found: chatlog.Saved, in_view: str, screen: Screen) -> None:
    """Say that entries which a question had chosen are chosen another way now."""
    question = found.method.get("in_view")
    if question and question != in_view:
        now = f"conditioned on {first_line(in_view)!r}" if in_view else "query-agnostic"
        screen.tell(f"KV selection was conditioned on {first_line(question)!r}, now it is {now}")


def recall(chat: Chat, found: chatlog.Saved) -> None:
    """Feed saved turns to a chat, behind a bar.

    Raises `Dropped` if the person stops it, KvchatError("session") for tokens that there are not.
    """
    turns = [turn_of(event) for event in found.turns]
    vocabulary = chat.session.engine.config.vocab_size
    most = max((token for turn in turns for token in (*turn.ids, *turn.pending)), default=0)
    if most >= vocabulary:
        raise KvchatError(
            "session", f"{found.path} is damaged: it has token {most:,}; there are {vocabulary:,}"
        )
    count = sum(len(turn.ids) for turn in turns)
    run(chat, chat.session.restore(turns), "restoring turns", count)
    if gone := len(chat.session.forgotten):
        chat.screen.warn(
            f"context window full: the oldest {gone:,} of {counted(len(turns), 'turn')} are "
            "dropped; the saved chat has all of them"
        )


def _usual(options: Options) -> Options:
    """Options for another chat: without documents, how they were read, and what was set meanwhile;
    a saved chat that has no value for it was read, and talked, in the usual way."""
    origins = options.origins
    gone = [name for name in DOCUMENT if origins.get(name, "") in ("flag", SAVED_CHAT)]
    gone += [name for name in LIVE if origins.get(name, "").startswith("/")]
    usual: dict[str, Any] = {name: getattr(Options, name, None) for name in gone}
    return replace(options, **usual, files=(), origins={})


def load(chat: Chat, screen: Screen, name: str) -> ChatLogWriter:
    """Turn `chat` into a saved one, with the same model. Raises KvchatError, Dropped.

    Until everything is there the present chat stays as it is.
    """
    found = chatlog.find(name, former=True)
    same_tokens(chat, found)
    if found.document.get("chat_template") != chat.model.template:
        raise KvchatError(
            "session",
            f"{found.title} was a chat with another chat template",
            f"kvchat --resume {found.title!r}",
        )
    options = restored(_usual(chat.options), found)
    writer, found = ChatLogWriter.of(screen, found)
    try:
        files = [open_document(path, options, screen) for path in options.files]
        same_text(files, found, screen, interactive=False)
        method = chosen_method(options, chat.session.engine.gate is not None) if files else Full()
        present = chat.session
        tokenizer = present.dialogue.tokenizer
        limit = present.engine.config.window(options.ctx_size)
        book = compose(
            tokenizer,
            files,
            options.system,
            limit,
            options.overflow,
            day=chatlog.saved_day(found),
            thinks=options.thinks,
            folds=options.folds,
        )
        if book.cut:
            screen.warn(f"{book.title}: {book.cut}")
        ends, folds = tuple(present.ends), options.tail_budget
        session = Session(
            present.engine,
            book.dialogue,
            ends,
            limit,
            folds,
            present.by_question,
            options.streams,
            cascade_of(options),
        )
        known = options.select == "instruction" and files and method.needs.sees
        questions = [*options.foreseen] if known else []
        other = replace(chat, options=options, session=session, method=method, book=book)
        other.timings, other.last, other.waiting = {}, None, None
        with timed(other.timings, "prefill"):
            restore(other, method, present.method, questions)
        recall(other, found)
    except BaseException:
        writer.close()
        raise
    other.timings = chat.timings | other.timings
    other.in_view = " / ".join(questions)
    vars(chat).update(vars(other))
    say_chosen(found, chat.in_view, screen)
    return writer
