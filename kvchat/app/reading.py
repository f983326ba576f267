"""Reads documents into a chat behind a bar: planned before, stoppable in between, and the old
cache stays until the new one is there."""

from collections.abc import Generator, Sequence
from time import perf_counter
from typing import TypeVar

from kvchat.app import machine
from kvchat.app.ask import choose
from kvchat.app.book import Book
from kvchat.app.chat import Chat
from kvchat.app.interrupt import Interrupt
from kvchat.app.plan import PROCESS, make_plan
from kvchat.app.screen import Pause, Screen
from kvchat.app.text import first_line, seconds, size, sizes
from kvchat.engine.events import Progress, Smaller
from kvchat.engine.methods import METHODS
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.spec import bits_of, name_of
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
            interrupt.leave_if_told()
            if not interrupt.asked():
                return
            with pause(), interrupt.idle():
                key = choose("stop reading? [c]ontinue / [d]rop", "cd", "d")
            interrupt.forget()
            if key == "d":
                raise Dropped

        try:
            return screen.watch(work, label, tokens, check)
        finally:
            work.close()


def read_again(
    chat: Chat,
    screen: Screen,
    method: Method | None = None,
    book: Book | None = None,
    questions: Sequence[str] = (),
) -> bool:
    """Read document and turns with another method, book or question in view; says what it did.

    False if the person would rather not; everything is then as it was. Raises KvchatError.
    """
    session, method, book = chat.session, method or chat.method, book or chat.book
    tokens = len(book.ids) + sum(len(turn.ids) for turn in session.turns)
    require_room(chat, method, len(book.ids))
    if not agreed(chat, screen, tokens):
        return False
    begin = perf_counter()
    work = session.use(method, questions, book.ids, book.dialogue)
    try:
        watched(work, screen, "reading", tokens)
    except Dropped:
        screen.tell("stopped: nothing has changed")
        return False
    except Exception as error:
        raise out_of_memory(chat, error) from error
    before = chat.in_view
    chat.method, chat.book, chat.in_view = method, book, questions[0] if questions else ""
    if book.ids:
        chat.timings["prefill"] = perf_counter() - begin
        screen.tell(reading_line(chat, screen.line))
    if before and not questions:
        screen.tell(
            f"rows are chosen by the document's end again, no more for {first_line(before)!r}"
        )
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
        bits=bits_of(method),
        replays=METHODS[name_of(method)].replays,
    )
    # weights and process are there already; the old cache stays until the new one is read
    needed = plan.reading - plan.weights - PROCESS
    free = machine.left(engine.device, chat.options.mem_limit)
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


def reading_line(chat: Chat, width: int = 1000) -> str:
    """`read 27,913 tokens in 6.6 s (4,230 tok/s) · adakv kept 25 % of rows: 0.86 of 3.41 GiB`.

    The plan has named the method, so its name is the first to go from a narrow line.
    """
    took, tokens = chat.timings["prefill"], len(chat.session.document)
    held, full = chat.document_kept(), chat.document_full()
    kept = f"kept {100 * chat.document_rows():.3g} % of rows: {sizes(held, full)}"
    read = f"read {tokens:,} tokens in {seconds(took)} ({tokens / max(took, 1e-6):,.0f} tok/s)"
    line = f"{read} · {name_of(chat.method)} {kept}"
    return line if len(line) <= width else f"{read} · {kept}"
