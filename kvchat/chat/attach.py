"""Other documents or another system prompt for a chat: composed, planned, prefilled with its
turns."""

from collections.abc import Sequence
from time import perf_counter

from kvchat.chat import auto
from kvchat.chat.chat import Chat
from kvchat.chat.planning import window_line
from kvchat.chat.prefill import kept_line, prefill_first
from kvchat.chat.recompress import agreed, recompress, require_room
from kvchat.chat.setup import chosen_method
from kvchat.chat.work import Dropped, run, timed
from kvchat.documents import Document
from kvchat.documents.document_ids import Book, compose
from kvchat.engine import sizes
from kvchat.engine.context_window import require_fit, tokens_of
from kvchat.engine.events import drain
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.specs import name_of
from kvchat.hub.find import longer_windows
from kvchat.machine import resources as machine
from kvchat.machine.loaded import left, workload
from kvchat.machine.plan import Workload, make_plan
from kvchat.terminal.text import alike, counted, seconds, unicode


def attach(chat: Chat, added: Sequence[Document]) -> bool:
    """Add documents to those that are there. False if the person would rather not."""
    for notice in (notice for each in added for notice in each.notices):
        chat.screen.warn(notice)
    if _can_append(chat):
        return append(chat, added)
    book, method = _book(chat, (*chat.book.files, *added), chat.book.system), chat.method
    if not chat.book.files or len(chat.book.ids) < sizes.SMALL:  # nothing is compressed yet
        method = first_method(chat, book)
    _announce(chat, book, method)
    return recompress(chat, method, book, chat.chosen_for)


def _can_append(chat: Chat) -> bool:
    """Whether what was read can stay as it is: all of it is in the window, and what is kept was
    chosen without a question, as a share of it."""
    book, budget = chat.book, chat.method.budget
    asked = chat.in_view or chat.session.by_question or chat.cache.full_copy != "off"
    whole = book.files and book.cut is None and book.streamed is None
    return bool(whole and not asked and budget.fraction is not None)


def append(chat: Chat, added: Sequence[Document]) -> bool:
    """Read documents behind those that are there, which stay as they are kept.

    False if the person would rather not. Raises KvchatError.
    """
    session, screen, present = chat.session, chat.screen, chat.method
    book = chat.book.with_added(added)
    ids, talk = book.ids[len(chat.book.ids) :], tokens_of(session.turns)
    if len(chat.book.ids) < sizes.SMALL:  # nothing is compressed yet
        present = first_method(chat, book)
    method = Full() if (why := auto.few(len(ids), present)) else present
    require_room(chat, method, len(ids))
    tokens = len(ids) + talk
    screen.tell(f"{len(ids):,} tokens behind the {len(chat.book.ids):,} that are there")
    if not agreed(chat, talk, len(ids), method):
        return False
    begin = perf_counter()
    try:
        run(chat, session.append(ids, method), "prefill", tokens)
    except Dropped:
        if len(session.document) < len(book.ids):
            screen.tell("interrupted: nothing has changed")
            return False
        screen.tell("interrupted: the turns follow with the next question")
    took = perf_counter() - begin
    chat.book = book
    if method != Full() or chat.method == Full():
        chat.method = method
    chat.timings["prefill"] = chat.timings.get("prefill", 0.0) + took
    speed = f"{seconds(took)} ({tokens / max(took, 1e-6):,.0f} tok/s)"
    screen.tell(f"prefill {tokens:,} tokens in {speed} · {kept_line(chat)}")
    if why:
        screen.tell(why)
    return True


def leave_out(chat: Chat, number: int) -> bool:
    """Go on without document `number`. False if the person would rather not."""
    others = (*chat.book.files[:number], *chat.book.files[number + 1 :])
    book = _book(chat, others, chat.book.system)
    method, questions = (chat.method, chat.chosen_for) if others else (Full(), [])
    return recompress(chat, method, book, questions)


def instruct(chat: Chat, system: str) -> bool:
    """Go on with another system prompt: behind documents it changes what only the turns need.

    False if the person would rather not. Raises KvchatError.
    """
    if not chat.book.files or chat.options.folds:
        book = _book(chat, chat.book.files, system)
        return recompress(chat, book=book, questions=chat.chosen_for)
    session, book = chat.session, chat.book.told(system)
    talk, gone = tokens_of(session.turns), len(session.forgotten)
    behind = len(session.document) + book.dialogue.told_tokens
    require_fit(behind, session.limit, "it, with the documents,")
    if not agreed(chat, talk):
        return False
    try:
        run(chat, session.rephrase(book.dialogue), "restoring turns", talk)
    except Dropped:
        chat.screen.tell("interrupted: nothing has changed")
        return False
    chat.book = book
    if left := len(session.forgotten) - gone:
        oldest = f"the oldest {counted(left, 'turn')} dropped"
        chat.screen.warn(f"context window full: {oldest}; the saved chat has all")
    return True


def turn_to(chat: Chat, document: Document) -> None:
    """Let a chat that nobody talks to be about one other document; what it was about goes first.

    Raises KvchatError; the chat is then without a document.
    """
    chat.cache.wait()  # or what is being saved of many documents would pile up
    forget(chat)
    session, screen, options = chat.session, chat.screen, chat.options
    with timed(chat.timings, "tokenize"):
        book = _book(chat, (document,), unicode(options.system))
    wanted = first_method(chat, book)
    why = auto.few(len(book.ids), wanted)
    method = Full() if why else wanted
    screen.say(window_line(len(book.ids), session.limit, book.streamed))
    if why:
        screen.say(f"      {why}")
    require_room(chat, method, len(book.ids))
    chat.book, chat.method, session.dialogue = book, method, book.dialogue
    prefill_first(chat, wanted)


def forget(chat: Chat) -> None:
    """A chat without document, system prompt and turns."""
    session = chat.session
    thinks = chat.options.thinks
    book = compose(session.dialogue.tokenizer, (), "", session.limit, thinks=thinks)
    session.dialogue = book.dialogue
    drain(session.prefill(book.ids, Full(), session.method))
    chat.book, chat.method, chat.in_view, chat.last = book, Full(), "", None
    chat.restored = chat.waiting = None


def _book(chat: Chat, files: Sequence[Document], system: str) -> Book:
    """The book of other files or another system prompt, for the same model."""
    session = chat.session
    tokenizer, limit = session.dialogue.tokenizer, session.limit
    talk = 0 if session.cascade else tokens_of(session.turns)
    book = compose(
        tokenizer,
        files,
        system,
        limit - talk,
        chat.options.overflow,
        longer_windows,
        thinks=chat.options.thinks,
        folds=chat.options.folds,
    )
    if book.cut:
        chat.screen.warn(f"{book.title}: {book.cut}")
    return book


def first_method(chat: Chat, book: Book) -> Method:
    """The method for the first documents of a chat."""
    if auto.is_open(chat.options):
        return by_memory(chat, book)
    return chosen_method(chat.options, chat.session.engine.gate is not None)


def by_memory(chat: Chat, book: Book) -> Method:
    """The method that memory allows for a book now; says why."""
    engine, options = chat.session.engine, chat.options

    def work(method: Method) -> Workload:
        session = chat.session
        return workload(engine, method, len(book.ids), session.limit, session.streams)

    host = machine.free(machine.CPU) if engine.device.type == "cuda" else 0
    free = left(engine, options.mem_limit)
    space = auto.Space.beside(free, host, chat.cache.root)
    method, why = auto.choose(options, engine.gate is not None, work, space, loaded=True)
    chat.screen.say(why)
    return method


def _announce(chat: Chat, book: Book, method: Method) -> None:
    """The plan of a prefill, in a line."""
    limit, tokens = chat.session.limit, len(book.ids)
    work = workload(chat.session.engine, method, tokens, limit, chat.session.streams)
    plan = make_plan(work)
    full, kept = alike(plan.kv_full, plan.kv_kept)
    compressed = f" in full → {kept} with {name_of(method)}" if method != Full() else ""
    read = f"{tokens / limit:.0%}" if book.streamed is None else f"{tokens / limit:.1f} times"
    chat.screen.tell(
        f"{tokens:,} tokens · {read} of the {limit:,} context window · plan: KV {full}{compressed}"
    )
