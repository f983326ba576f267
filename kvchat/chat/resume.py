"""Opens a chat anew, or goes on with a saved one: document, method, settings, turns come back."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kvchat import documents
from kvchat.chat import chatlog as saved
from kvchat.chat.chat import Chat
from kvchat.chat.chatlog_writer import Keeper, turn_of
from kvchat.chat.open import chosen_method, context_limit, open_chat
from kvchat.chat.prefill import Dropped, timed, watched
from kvchat.chat.sources import SAVED, open_document
from kvchat.chat.whole import whole
from kvchat.documents.document_ids import compose
from kvchat.engine.methods.full import Full
from kvchat.engine.session import Session
from kvchat.engine.store.tokens import tokenizer_digest
from kvchat.engine.turn import Turn
from kvchat.errors import KvchatError
from kvchat.settings.options import SAVED_CHAT, Options
from kvchat.settings.settings import KEYS
from kvchat.terminal.key_prompt import choose
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import clean, counted, first_line

ORIGIN = SAVED_CHAT
# Options that a saved chat has with its document.
DOCUMENT = (
    *("system", "encoding", "pages", "loader", "clean", "overflow", "ctx_size"),
    *("tokenizer", "chat_template"),
)


def open_or_resume(
    options: Options, screen: Screen, interactive: bool = True
) -> tuple[Chat, Keeper]:
    """The chat that options ask for, and its file. Raises KvchatError."""
    found = named(options)
    if found is None:
        keeps = options.save and (interactive or options.session is not None)
        path = saved.new_path() if keeps else None
        name = saved.checked_name(options.session) if options.session else ""
        keeper = Keeper(screen, path, name)
        return open_chat(options, screen, interactive), keeper
    keeper = Keeper.of(screen, found)
    screen.say(f"going on with {found.title}: {counted(len(found.turns), 'turn')}", "bold")
    chat = open_chat(restored(options, found), screen, interactive)
    same_tokens(chat, found)
    same_text(chat.book.files, found, screen, interactive)
    say_chosen(found, chat.in_view, screen)
    turns = [turn_of(event) for event in found.turns]
    try:
        recall(whole(chat).session, turns, screen)
    except Dropped:
        raise KeyboardInterrupt from None
    return chat, keeper


def named(options: Options) -> saved.Saved | None:
    """The saved chat that options name; None for a new one. Raises KvchatError("session")."""
    if options.last or options.resume:
        return saved.find(options.resume)
    if options.session:
        exact = [chat for chat in saved.listing() if chat.name == options.session]
        return exact[0] if exact else None
    return None


def restored(options: Options, found: saved.Saved) -> Options:
    """Options with everything that the saved chat knows and no flag says otherwise."""
    document, method = found.document, found.method
    values: dict[str, Any] = {"model": found.chat.get("folder")}
    for name in DOCUMENT:
        values[name] = document.get(name)
    values["tail_budget"] = method.get("tail_budget")
    values |= {name: found.settings[name] for name in KEYS if name in found.settings}
    if "method" not in by_flag(options):
        values["method"] = method.get("name")
        values["method_options"] = [f"{k}={v}" for k, v in method.get("options", {}).items()]
        values["budget"] = method.get("budget") if method.get("name") != "full" else None
    taken = {
        name: value
        for name, value in values.items()
        if value is not None and name not in by_flag(options)
    }
    if not options.files:
        files = document.get("files", ())
        taken["files"] = [file["path"] or SAVED + file["name"] for file in files]
        taken["texts"] = {SAVED + file["name"]: file["text"] for file in files if "text" in file}
    origins = {**options.origins, **dict.fromkeys(taken, ORIGIN)}
    return replace(options, **taken, origins=origins)


def by_flag(options: Options) -> set[str]:
    """Names of options that were given on the command line."""
    return {name for name, origin in options.origins.items() if origin == "flag"}


def same_tokens(chat: Chat, found: saved.Saved) -> None:
    """Raise KvchatError("session") if the saved ids belong to another tokenizer."""
    if tokenizer_digest(chat.model.text_folder.resolve()) != found.chat.get("tokenizer"):
        folder = clean(str(found.chat.get("folder")))
        raise KvchatError(
            "session",
            f"{found.title} was a chat with {folder}; its tokens mean something else to "
            f"{chat.model.name}",
            f"kvchat -m {folder} --resume {found.title!r}",
        )


def same_text(
    files: Sequence[documents.Document], found: saved.Saved, screen: Screen, interactive: bool
) -> None:
    """Name files that are not as they were; the person may stop here."""
    known = {file["path"]: file["sha256"] for file in found.document.get("files", ())}
    for file in files:
        if file.path and known.get(file.path, file.digest) != file.digest:
            screen.warn(f"{file.title} has changed since the chat; the new text was read")
            if interactive and choose("[g]o on / [q]uit", "gq", "g", "q") == "q":
                raise KeyboardInterrupt


def say_chosen(found: saved.Saved, in_view: str, screen: Screen) -> None:
    """Say that entries which a question had chosen are chosen another way now."""
    question = found.method.get("in_view")
    if question and question != in_view:
        now = f"for {first_line(in_view)!r}" if in_view else "by the document's end"
        screen.tell(
            f"entries had been chosen for {first_line(question)!r}, now {now}; "
            "/reread QUESTION chooses so again"
        )


def recall(session: Session, turns: Sequence[Turn], screen: Screen) -> None:
    """Feed saved turns to a session, behind a bar. Raises `Dropped` if the person stops it."""
    count = sum(len(turn.ids) for turn in turns)
    watched(session.restore(turns), screen, "recalling", count)


def load(chat: Chat, screen: Screen, name: str) -> Keeper:
    """Turn `chat` into a saved one, with the same model. Raises KvchatError, Dropped.

    Until everything is read the present chat stays as it is.
    """
    found = saved.find(name)
    same_tokens(chat, found)
    if found.document.get("chat_template") != chat.model.template:
        raise KvchatError(
            "session",
            f"{found.title} was a chat with another chat template",
            f"kvchat --resume {found.title!r}",
        )
    options = restored(replace(chat.options, files=[], origins={}), found)
    keeper = Keeper.of(screen, found)
    try:
        files = [open_document(path, options) for path in options.files]
        same_text(files, found, screen, interactive=False)
        method = chosen_method(options) if files else Full()
        present, _, readings = whole(chat)
        tokenizer, limit = present.dialogue.tokenizer, context_limit(present.engine.config, options)
        book = compose(tokenizer, files, options.system, limit, options.overflow)
        if book.cut:
            screen.warn(f"{book.title}: {book.cut}")
        ends, folds = tuple(present.ends), options.tail_budget
        session = Session(present.engine, book.dialogue, ends, limit, folds, present.by_question)
        tokens = len(book.ids)
        known = options.select == "instruction" and files and method.needs.sees
        questions = options.foreseen if known else []
        with timed(chat.timings, "prefill"):
            before = readings.open(
                session,
                chat.model,
                book,
                method,
                present.method,
                lambda work: watched(work, screen, "reading", tokens),
                questions,
            )
        recall(session, [turn_of(event) for event in found.turns], screen)
    except BaseException:
        keeper.close()
        raise
    settings = chat.settings
    for key in KEYS:
        if key in found.settings:
            value = found.settings[key]
            value = tuple(value) if isinstance(value, list) else value
            settings = settings.changed(key, value, ORIGIN)
    chat.options, chat.session, chat.method, chat.book = options, session, method, book
    chat.settings, chat.last, chat.restored = settings, None, before
    chat.in_view = " / ".join(questions)
    say_chosen(found, chat.in_view, screen)
    return keeper
