"""Compresses document and turns of a chat anew, by another method, budget or question: planned
before, and the old cache stays until the new one is there."""

from collections.abc import Sequence
from time import perf_counter

from kvchat.chat.auto import few
from kvchat.chat.chat import Chat
from kvchat.chat.prefill import kept_line, prefill_line, say_gate, say_selection
from kvchat.chat.work import Dropped, run
from kvchat.documents.document_ids import Book
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.specs import name_of
from kvchat.errors import KvchatError
from kvchat.machine.loaded import left, workload
from kvchat.machine.plan import geometry_of, make_plan
from kvchat.terminal.key_prompt import choose
from kvchat.terminal.text import seconds, size

LONG = 15.0  # seconds; a prefill above that is asked for


def recompress(
    chat: Chat,
    method: Method | None = None,
    book: Book | None = None,
    questions: Sequence[str] = (),
    fresh: bool = False,
) -> bool:
    """Compress document and turns with another method, book or question in view; says what it did.

    A full copy that is kept or a cached document takes the place of a prefill, unless it is to be
    `fresh`. False if the person would rather not; everything is then as it was. Raises
    KvchatError.
    """
    session, screen, in_view = chat.session, chat.screen, chat.in_view
    method, question = method or chat.method, questions[0] if questions else ""
    if why := few(len((book or chat.book).ids), method):
        screen.tell(why)
        method = Full()
        if book is None and chat.method == method:
            return False
    if book is None and not fresh and session.choose(method, *questions):
        chat.method, chat.in_view = method, question
        took = seconds(session.select_seconds)
        screen.tell(f"selected from all entries in {took}: {name_of(method)} {kept_line(chat)}")
        say_selection(chat, in_view)
        return True
    book, talk = book or chat.book, sum(len(turn.ids) for turn in session.turns)
    found = chat.cache.find(book, method) if not questions and not fresh else None
    if found is None:
        if book.ids:  # a budget that cannot be met is refused before anything is asked
            config, itemsize = session.engine.config, session.engine.dtype.itemsize
            method.entries(geometry_of(config, itemsize, len(book.ids)))
        require_room(chat, method, len(book.ids))
    tokens = talk + (0 if found else len(book.ids))
    if not agreed(chat, talk, tokens - talk, method):
        return False
    begin = perf_counter()
    archiving = None if found else chat.cache.archiving(book, method)
    book = found.book if found else book
    folds = None if book.files else session.method  # what keeps every entry compresses no turns
    ready = found.cache if found else None
    work = session.recompress(method, questions, book.ids, book.dialogue, ready, archiving, folds)
    try:
        run(chat, work, "prefill", tokens)
    except Dropped:
        screen.tell("interrupted: nothing has changed")
        return False
    took_all = perf_counter() - begin
    chat.method, chat.book, chat.in_view, chat.restored = method, book, question, found
    chat.cache.kept(archiving)
    if not questions and not found:
        chat.cache.save(session, book, method, took_all)
    if book.files:
        chat.timings["prefill"] = took_all
        screen.tell(prefill_line(chat, screen.line))
        say_gate(chat)
    say_selection(chat, in_view)
    return True


def passes(method: Method) -> float:
    """How much work a prefill is, about, against that of a method without replays."""
    return 1 + len(method.needs.kinds)


def agreed(chat: Chat, talk: int, document: int = 0, method: Method | None = None) -> bool:
    """Say how long a prefill of turns of `talk` tokens and of a document takes, and ask if that is
    long. `method`: what compresses the document, if it is not what the chat uses."""
    if not chat.read_speed:
        return True
    tokens, usual = talk + document, passes(chat.method)
    took = (talk / usual + document * passes(method or chat.method) / usual) / chat.read_speed
    line = f"prefill of {tokens:,} tokens takes about {seconds(took)}"
    if took < LONG or chat.options.yes:
        chat.screen.say(line)
        return True
    return choose(f"{line}; go on? [Y/n]", "yn", "y", "n") == "y"


def require_room(chat: Chat, method: Method, tokens: int) -> None:
    """Raise KvchatError("memory") if a prefill beside the present cache needs more than is free."""
    engine = chat.session.engine
    plan = make_plan(workload(engine, method, tokens, chat.session.limit, chat.session.streams))
    # weights and process are there already; the old cache stays until the new one is there
    needed = plan.prefill - plan.weights - plan.base
    free = left(engine, chat.options.mem_limit)
    if needed > free:
        raise KvchatError(
            "memory",
            f"the prefill with {name_of(method)} needs {size(needed)}, {size(free)} are free "
            "while the present cache is kept",
            "/budget 10%",
            needed=needed,
            free=free,
        )
