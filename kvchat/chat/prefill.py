"""Reads documents into a chat behind a bar: planned before, stoppable in between, and the old
cache stays until the new one is there."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import TypeVar

from kvchat.chat import auto_budget as auto
from kvchat.chat.chat import Chat
from kvchat.chat.shortage import out_of_memory
from kvchat.documents.document_ids import Book, compose
from kvchat.engine.events import Progress, Smaller, drain
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.specs import name_of
from kvchat.engine.prefill.auto_budget import open_within
from kvchat.errors import KvchatError
from kvchat.machine import resources as machine
from kvchat.machine.loaded import workload
from kvchat.machine.plan import make_plan
from kvchat.terminal.interrupt import Interrupt
from kvchat.terminal.key_prompt import choose
from kvchat.terminal.screen import Pause, Screen
from kvchat.terminal.text import first_line, seconds, size, sizes, unicode

R = TypeVar("R")
LONG = 5.0  # seconds; a reading above that is asked for


class Dropped(Exception):
    """The person stopped a reading."""


def run(
    chat: Chat,
    work: Generator[Progress | Smaller, None, R],
    screen: Screen,
    label: str,
    tokens: int,
) -> R:
    """Run work of a chat behind a bar; where somebody sits there, Ctrl-C asks. Raises `Dropped`."""
    if chat.interactive:
        return watched(work, screen, label, tokens)
    return screen.watch(work, label, tokens)


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
                key = choose("stop reading? [c]ontinue / [d]rop", "cd", "d", "d")
            interrupt.forget()
            if key == "d":
                raise Dropped

        try:
            return screen.watch(work, label, tokens, check)
        finally:
            work.close()


def read_first(chat: Chat, screen: Screen, folds: Method) -> None:
    """Read the book of a new chat. If the person drops it, the chat has no document."""
    session, method, readings = chat.session, chat.method, chat.cache
    tokens = len(chat.book.ids)
    asked = chat.options.foreseen if chat.book.files and method.needs.sees else []
    questions = [unicode(prompt) for prompt in asked]
    chat.in_view = " / ".join(questions)

    def running(work: Generator[Progress | Smaller, None, R]) -> R:
        return run(chat, work, screen, "prefill", tokens)

    promise, begin = chat.options.auto_loss, perf_counter()
    if promise is not None and not chat.book.files:
        screen.warn("--auto-loss chooses for documents that are read at the start: there is none")
        promise = None
    try:
        with timed(chat.timings, "prefill"):
            if promise is not None:
                kept = running(open_within(session, chat.book.ids, method, promise, folds))
                chat.promise, chat.method = kept, kept.method
                auto.tell(kept, screen)
                took = perf_counter() - begin
                readings.save(session, chat.model, chat.book, kept.method, took)
            else:
                chat.restored = readings.open(
                    session, chat.model, chat.book, method, folds, running, questions
                )
    except Dropped:
        tokenizer = session.dialogue.tokenizer
        chat.book = compose(tokenizer, (), chat.book.system, session.limit)
        chat.method, session.dialogue = Full(), chat.book.dialogue
        drain(session.prefill(chat.book.ids, Full(), folds))
        screen.tell("document dropped; /file PATH reads another")
        return
    except Exception as error:
        raise out_of_memory(chat, error) from error
    machine.release(session.engine.device)
    if chat.book.files:
        screen.say(reading_line(chat, screen.line))


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
    be `fresh`. False if the person would rather not; everything is then as it was. Raises
    KvchatError.
    """
    session, present, readings = chat.session, chat.method, chat.cache
    method = method or present
    if book is None and not fresh and session.choose(method, *questions):
        before = chat.in_view
        chat.method, chat.in_view = method, questions[0] if questions else ""
        done = f"chosen again in {seconds(session.select_seconds)}, nothing was read"
        screen.tell(f"{done}: {name_of(method)} {kept_line(chat)}")
        say_chosen_anew(chat, before, screen)
        return True
    book = book or chat.book
    tokens, found = sum(len(turn.ids) for turn in session.turns), None
    if not questions and not fresh:
        found = readings.find(session.engine, chat.model, book, method)
    if found is None:
        tokens += len(book.ids)
        require_room(chat, method, len(book.ids))
    if not agreed(chat, screen, tokens):
        return False
    begin = perf_counter()
    ready, restored = found or (None, None)
    archiving = None
    if found is None:
        archiving = readings.archiving(session.engine, chat.model, book, method)
    folds = None if book.files else session.method  # what keeps every entry folds nothing
    work = session.recompress(method, questions, book.ids, book.dialogue, ready, archiving, folds)
    try:
        run(chat, work, screen, "prefill", tokens)
    except Dropped:
        screen.tell("stopped: nothing has changed")
        return False
    except Exception as error:
        raise out_of_memory(chat, error) from error
    in_view = chat.in_view
    chat.method, chat.book, chat.in_view = method, book, questions[0] if questions else ""
    chat.restored, took = restored, perf_counter() - begin
    readings.kept(archiving)
    if not questions and not found:
        readings.save(session, chat.model, book, method, took)
    if book.ids:
        chat.timings["prefill"] = took
        screen.tell(reading_line(chat, screen.line))
    say_chosen_anew(chat, in_view, screen)
    return True


def say_chosen_anew(chat: Chat, before: str, screen: Screen) -> None:
    """Say that a choice of entries by the question `before` is gone."""
    if before and not chat.in_view:
        screen.tell(
            f"entries are chosen by the document's end again, no more for {first_line(before)!r}"
        )


def agreed(chat: Chat, screen: Screen, tokens: int) -> bool:
    """Say how long a reading of `tokens` takes, and ask if that is long."""
    if not chat.read_speed:
        return True
    took = tokens / chat.read_speed
    again = " again" if chat.book.files else ""
    line = f"reading {tokens:,} tokens{again} takes about {seconds(took)}"
    if took < LONG or chat.options.yes:
        screen.say(line)
        return True
    return choose(f"{line}; go on? [Y/n]", "yn", "y", "n") == "y"


def require_room(chat: Chat, method: Method, tokens: int) -> None:
    """Raise KvchatError("memory") if reading beside the present cache needs more than is free."""
    engine = chat.session.engine
    plan = make_plan(workload(engine, method, tokens, chat.session.limit))
    # weights and process are there already; the old cache stays until the new one is read
    needed = plan.reading - plan.weights - plan.base
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


def reading_line(chat: Chat, width: int = 1000) -> str:
    """`read 27,913 tokens in 6.6 s (4,230 tok/s) · adakv kept 25 % of entries: 0.86 of 3.41 GiB`.

    Or when they were read before, and what mapping them saves. The plan has named the method, so
    its name is the first to go from a narrow line.
    """
    took, tokens = chat.timings["prefill"], len(chat.session.document)
    kept = kept_line(chat)
    read = f"read {tokens:,} tokens in {seconds(took)} ({tokens / max(took, 1e-6):,.0f} tok/s)"
    if found := chat.restored:
        saves = f", saves about {seconds(found.read_seconds)}" if found.read_seconds else ""
        read = (
            f"read before ({found.created:%Y-%m-%d %H:%M}): {tokens:,} tokens mapped in "
            f"{seconds(found.seconds)}{saves}"
        )
    line = f"{read} · {name_of(chat.method)} {kept}"
    return line if len(line) <= width else f"{read} · {kept}"


def kept_line(chat: Chat) -> str:
    """`kept 25 % of entries: 0.86 of 3.41 GiB`, or what is read of entries that all are kept."""
    held, full = chat.document_kept(), chat.document_full()
    if share := chat.reads():
        return f"kept every entry, {size(held)} with codes; a written token reads {share}"
    return f"kept {100 * chat.kept_share():.3g} % of entries: {sizes(held, full)}"
