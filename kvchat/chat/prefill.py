"""Prefills documents into a chat behind a bar: planned before, stoppable in between, and the old
cache stays until the new one is there."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter
from typing import TypeVar

from kvchat.chat.auto import few
from kvchat.chat.chat import Chat, Waiting
from kvchat.chat.shortage import out_of_memory
from kvchat.documents.document_ids import Book, compose
from kvchat.engine.events import Progress, Smaller, drain
from kvchat.engine.gates.check import lost, usual
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.specs import name_of
from kvchat.errors import KvchatError
from kvchat.machine import resources as machine
from kvchat.machine.loaded import left, workload
from kvchat.machine.plan import geometry_of, make_plan
from kvchat.terminal.interrupt import Interrupt
from kvchat.terminal.key_prompt import choose
from kvchat.terminal.screen import Pause
from kvchat.terminal.text import first_line, seconds, size, sizes, unicode

R = TypeVar("R")
Work = Generator[Progress | Smaller, None, R]
WAITS = "what is read is kept; /more goes on with the prefill"
LONG = 15.0  # seconds; a prefill above that is asked for


class Dropped(Exception):
    """The person stopped a prefill."""


class Later(Dropped):
    """The person wants to go on later with what is read by now."""


def run(chat: Chat, work: Work[R], label: str, tokens: int, waits: bool = False) -> R:
    """Run work of a chat behind a bar. Where somebody sits there, Ctrl-C asks whether to go on.

    Raises `Dropped` if not, KvchatError("memory") with what was planned and what is there if memory
    runs out. Work that `waits` may be left as it is, with `Later`, to be run on.
    """
    left = False
    try:
        if not chat.interactive:
            return chat.screen.watch(work, label, tokens)
        with Interrupt() as interrupt:

            def check(pause: Pause) -> None:
                interrupt.leave_if_told()
                if not interrupt.asked():
                    return
                with pause(), interrupt.idle():
                    later, keys = (" / [l]ater", "cld") if waits else ("", "cd")
                    key = choose(
                        f"interrupted · [c]ontinue (Enter){later} / [d]rop the {label}",
                        keys,
                        "c",
                        "d",
                    )
                interrupt.forget()
                if key != "c":
                    raise Dropped if key == "d" else Later

            return chat.screen.watch(work, label, tokens, check)
    except Dropped as stopped:
        left = isinstance(stopped, Later)
        raise
    except Exception as error:
        raise out_of_memory(chat, error) from error
    finally:
        if not left:
            work.close()


def prefill_first(chat: Chat, folds: Method) -> None:
    """Prefill the book of a new chat. If the person drops it, the chat has no document."""
    session, method, screen, options = chat.session, chat.method, chat.screen, chat.options
    asked = options.foreseen if chat.book.files and method.needs.sees else []
    questions = [unicode(prompt) for prompt in asked]
    chat.in_view = " / ".join(questions)
    try:
        with timed(chat.timings, "prefill"):
            restore(chat, method, folds, questions)
    except Dropped as stopped:
        if isinstance(stopped, Later) and chat.waiting:
            chat.waiting = replace(chat.waiting, book=chat.book, method=method, asked=questions)
        tokenizer = session.dialogue.tokenizer
        system, thinks = chat.book.system, options.thinks
        chat.book = compose(tokenizer, (), system, session.limit, thinks=thinks)
        chat.method, session.dialogue = Full(), chat.book.dialogue
        drain(session.prefill(chat.book.ids, Full(), folds))
        if chat.waiting:
            screen.tell(WAITS)
        else:
            screen.tell("document dropped; /file PATH adds another")
        return
    machine.release(session.engine.device)
    if chat.book.files:
        screen.say(prefill_line(chat, screen.line))
        say_gate(chat)
    if day := chat.book.dialogue.day:
        screen.say(f"the chat template tells the model the date: {day}")


def restore(chat: Chat, method: Method, folds: Method | None, questions: Sequence[str]) -> None:
    """Begin the conversation of a chat over its book: from the prompt cache, or by a prefill."""
    book = chat.book

    def watched(work: Work[None]) -> None:
        begin = perf_counter()
        try:
            run(chat, work, "prefill", len(book.ids), waits=bool(book.files))
        except Later:
            chat.waiting = Waiting(work, perf_counter() - begin)
            raise

    chat.restored = chat.cache.open(chat.session, book, method, folds, watched, questions)
    if chat.restored:
        chat.book = chat.restored.book


def go_on(chat: Chat) -> bool:
    """Go on with the prefill that waits; what was asked meanwhile stands behind it then.

    False if it waits again, or is dropped.
    """
    session, screen, waiting = chat.session, chat.screen, chat.waiting
    assert waiting is not None and waiting.book is not None and waiting.method is not None
    book, talk, begin = waiting.book, session.all_turns, perf_counter()
    if not chat.options.folds:
        book = book.told(chat.book.system)  # it may be another one by now
    try:
        run(chat, waiting.work, "prefill", len(book.ids), waits=True)
    except Dropped as stopped:
        took = waiting.seconds + perf_counter() - begin
        later = isinstance(stopped, Later)
        chat.waiting = replace(waiting, seconds=took) if later else None
        screen.tell(WAITS if later else "document dropped; /file PATH adds another")
        return False
    chat.timings["prefill"] = waiting.seconds + perf_counter() - begin
    chat.waiting, chat.book, chat.method = None, book, waiting.method
    session.dialogue = book.dialogue
    chat.cache.save(session, book, chat.method, chat.timings["prefill"], waiting.asked)
    screen.tell(prefill_line(chat, screen.line))
    turns = session.retold(talk)
    run(chat, session.restore(turns), "restoring turns", sum(len(turn.ids) for turn in turns))
    return True


@contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """Note the seconds that a block takes."""
    begin = perf_counter()
    yield
    timings[name] = perf_counter() - begin


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


def say_selection(chat: Chat, before: str) -> None:
    """Say that a selection by the question `before` is gone."""
    if before and not chat.in_view:
        chat.screen.tell(f"KV selection is no longer conditioned on {first_line(before)!r}")


def say_gate(chat: Chat) -> None:
    """Warn of a gate that foretells little of the document that was just read."""
    session, gate = chat.session, chat.session.engine.gate
    told = session.gate_correlation
    if chat.restored or gate is None or told is None or not lost(told, gate):
        return
    chat.screen.warn(
        f"the gate of this model foretells little of this document (correlation {told:.2f}; "
        f"{usual(gate):.2f} on text like that it was fitted to): /method kvzip reads it twice and "
        "does not guess"
    )


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


def prefill_line(chat: Chat, width: int = 1000) -> str:
    """`prefill 27,913 tokens in 6.6 s (4,230 tok/s) · adakv kept 25 % of entries: 0.86 of 3.41 GiB`

    Or that they were loaded from the cache, and what that saved. The plan has named the method, so
    its name is the first to go from a narrow line.
    """
    took, tokens = chat.timings["prefill"], len(chat.session.document)
    kept = kept_line(chat)
    done = f"prefill {tokens:,} tokens in {seconds(took)} ({tokens / max(took, 1e-6):,.0f} tok/s)"
    if found := chat.restored:
        instead = f" instead of {seconds(found.read_seconds)}" if found.read_seconds else ""
        done = (
            f"{tokens:,} tokens loaded from cache in {seconds(found.seconds)}{instead} "
            f"({found.created:%Y-%m-%d %H:%M})"
        )
    line = f"{done} · {name_of(chat.method)} {kept}"
    return line if len(line) <= width else f"{done} · {kept}"


def kept_line(chat: Chat) -> str:
    """`kept 25 % of entries: 0.86 of 3.41 GiB`, or what is attended to of entries all kept."""
    held, full = chat.document_kept(), chat.document_full()
    if share := chat.attended_share():
        return f"kept every entry, {size(held)} with codes; each decoded token attends to {share}"
    if chat.method == Full():
        return f"kept every entry, {size(held)}"
    return f"kept {100 * chat.kept_share():.3g} % of entries: {sizes(held, full)}"
