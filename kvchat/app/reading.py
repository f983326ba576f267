"""Reads documents into a chat behind a bar: planned before, stoppable in between, and the old
cache stays until the new one is there."""

import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import TypeVar

from kvchat.app import machine
from kvchat.app.ask import choose
from kvchat.app.book import Book, compose
from kvchat.app.chat import Chat
from kvchat.app.interrupt import Interrupt
from kvchat.app.methods import cost_of
from kvchat.app.plan import PROCESS, make_plan
from kvchat.app.screen import Pause, Screen
from kvchat.app.text import seconds, size, sizes, unicode
from kvchat.engine.events import Progress, Smaller, drain
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.full import Full
from kvchat.engine.methods.spec import name_of
from kvchat.engine.promise import Kept, open_within
from kvchat.errors import KvchatError, is_out_of_memory

R = TypeVar("R")
LONG = 5.0  # seconds; a reading above that is asked for


class Dropped(Exception):
    """The person stopped a reading."""


def watched(
    work: Generator[Progress | Smaller, None, R], screen: Screen, label: str, tokens: int
) -> R:
    """Run a reading; Ctrl-C asks whether to go on. Raises `Dropped` if not.

    Raises KvchatError("memory") with what was planned and what is there if memory runs out.
    """
    with Interrupt() as interrupt:

        def check(pause: Pause) -> None:
            if interrupt.ended:
                sys.exit(128 + interrupt.ended)
            if not interrupt.asked():
                return
            with pause():
                key = choose("stop reading? [c]ontinue / [d]rop", "cd", "d")
            interrupt.forget()
            if key == "d":
                raise Dropped

        try:
            return screen.watch(work, label, tokens, check)
        finally:
            work.close()


def read_first(chat: Chat, screen: Screen, interactive: bool, folds: Method) -> None:
    """Read the book of a new chat. If the person drops it, the chat has no document."""
    session, tokens = chat.session, len(chat.book.ids)
    questions = [unicode(prompt) for prompt in chat.options.foreseen] if chat.book.files else []
    chat.in_view = " / ".join(questions)

    def run(work: Generator[Progress | Smaller, None, R]) -> R:
        if interactive:
            return watched(work, screen, "reading", tokens)
        return screen.watch(work, "reading", tokens)

    promise = chat.options.auto_loss if chat.book.files else None
    try:
        with timed(chat.timings, "prefill"):
            if promise is not None:
                chat.promise = run(open_within(session, chat.book.ids, chat.method, promise, folds))
                chat.method = chat.promise.method
                tell_promise(chat.promise, screen)
            else:
                chat.restored = chat.readings.open(
                    session, chat.model, chat.book, chat.method, folds, run, questions
                )
    except Dropped:
        tokenizer = session.dialogue.tokenizer
        chat.book = compose(tokenizer, (), "", session.limit)
        chat.method, session.dialogue = Full(), chat.book.dialogue
        drain(session.open(chat.book.ids, chat.method, folds))
        screen.tell("document dropped; /file PATH reads another")
        return
    except Exception as error:
        raise out_of_memory(chat, error) from error
    machine.release(session.engine.device)
    if chat.book.files:
        screen.say(reading_line(chat))


def tell_promise(kept: Kept, screen: Screen) -> None:
    """Which budget keeps the promise of `--auto-loss`, or that none does."""
    held = f"{100 * kept.loss:.3g} % of held-out tokens change"
    wanted = f"{100 * kept.promise:.3g} % may"
    if kept.holds:
        screen.say(f"budget {kept.method.budget}: {held}, {wanted}")
    else:
        screen.warn(f"no budget keeps the promise: at {kept.method.budget} {held}, {wanted}")


@contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """Note the seconds that a block takes."""
    begin = perf_counter()
    yield
    timings[name] = perf_counter() - begin


def read_again(
    chat: Chat,
    screen: Screen,
    method: Method | None = None,
    book: Book | None = None,
    questions: Sequence[str] = (),
    fresh: bool = False,
) -> bool:
    """Read document and turns with another method, book or question in view; says what it did.

    A saved reading takes the place of the document's, or a full copy that is kept, unless it is to
    be `fresh`. False if the
    person would rather not; everything is then as it was. Raises KvchatError.
    """
    session, method = chat.session, method or chat.method
    if book is None and not fresh and session.choose(method, *questions):
        chat.method, chat.in_view = method, questions[0] if questions else ""
        held, full = chat.document_kept(), chat.document_full()
        screen.tell(
            f"chosen again in {seconds(session.select_seconds)}, nothing was read: "
            f"{name_of(method)} kept {100 * held / full:.3g} %: {sizes(held, full)}"
        )
        return True
    book = book or chat.book
    tokens, found = sum(len(turn.ids) for turn in session.turns), None
    if not questions and not fresh:
        found = chat.readings.find(session.engine, chat.model, book, method)
    if found is None:
        tokens += len(book.ids)
        require_room(chat, method, len(book.ids))
    if not agreed(chat, screen, tokens):
        return False
    begin = perf_counter()
    ready = found.cache if found else None
    archiving = None
    if found is None:
        archiving = chat.readings.archiving(session.engine, chat.model, book, method)
    work = session.use(method, questions, book.ids, book.dialogue, ready, archiving)
    try:
        watched(work, screen, "reading", tokens)
    except Dropped:
        screen.tell("stopped: nothing has changed")
        return False
    except Exception as error:
        raise out_of_memory(chat, error) from error
    chat.method, chat.book, chat.in_view = method, book, questions[0] if questions else ""
    chat.restored, took = found, perf_counter() - begin
    chat.readings.kept(archiving)
    if not questions and not found:
        chat.readings.save(session, chat.model, book, method, took)
    if book.ids:
        chat.timings["prefill"] = took
        screen.tell(reading_line(chat))
    return True


def agreed(chat: Chat, screen: Screen, tokens: int) -> bool:
    """Say how long a reading of `tokens` takes, and ask if that is long."""
    if not chat.read_speed:
        return True
    took = tokens / chat.read_speed
    line = f"reading {tokens:,} tokens again takes about {seconds(took)}"
    if took < LONG or chat.options.yes:
        screen.say(line)
        return True
    return choose(f"{line}; go on? [Y/n]", "yn", "y") == "y"


def require_room(chat: Chat, method: Method, tokens: int) -> None:
    """Raise KvchatError("memory") if reading beside the present cache needs more than is free."""
    engine = chat.session.engine
    plan = make_plan(
        engine.config,
        engine.dtype.itemsize,
        tokens,
        method.budget,
        chat.session.limit,
        engine.chunk,
        cost=cost_of(method),
    )
    # weights and process are there already; the old cache stays until the new one is read
    needed = plan.reading - plan.weights - PROCESS
    free = machine.free(engine.device)
    if needed > free:
        raise KvchatError(
            "memory",
            f"reading with {name_of(method)} needs {size(needed)}, {size(free)} are free "
            "while the present cache is kept",
            "/budget 10%",
            needed=needed,
            free=free,
        )


def out_of_memory(chat: Chat, error: Exception) -> Exception:
    """The error to raise: what was planned against what there is, if memory ran out."""
    if not is_out_of_memory(error):
        return error
    device = chat.session.engine.device
    return KvchatError(
        "memory",
        f"out of memory: {size(machine.free(device))} of {size(machine.total(device))} are free on "
        f"{device}, {size(machine.peak(device))} were in use at most; the chat is as it was",
        "/budget 10%",
        f"--prefill-chunk {max(chat.session.engine.chunk // 4, 1)}",
        "/reset  (forgets document and chat)",
    )


def reading_line(chat: Chat) -> str:
    """`read 27,913 tokens in 6.6 s (4,230 tok/s) · kept 25 % of KV: 0.86 of 3.41 GiB`.

    Or when they were read before, and what mapping them saves.
    """
    took, tokens = chat.timings["prefill"], len(chat.session.document)
    held, full = chat.document_kept(), chat.document_full()
    kept = f"kept {100 * held / full:.3g} %: {sizes(held, full)}"
    if share := chat.reads():
        kept = f"kept every row, {size(held)} with codes; a written token reads {share}"
    if found := chat.restored:
        saves = f", saves about {seconds(found.read_seconds)}" if found.read_seconds else ""
        return (
            f"read before ({found.created:%Y-%m-%d %H:%M}): {tokens:,} tokens mapped in "
            f"{seconds(found.seconds)}{saves} · {name_of(chat.method)} {kept}"
        )
    return (
        f"read {tokens:,} tokens in {seconds(took)} ({tokens / max(took, 1e-6):,.0f} tok/s) · "
        f"{name_of(chat.method)} {kept}"
    )
