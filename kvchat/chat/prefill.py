"""Prefills the documents of a chat, from the prompt cache or anew, now or later; says what it took
and kept."""

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter

from kvchat.chat.chat import Chat, Waiting
from kvchat.chat.work import Dropped, Later, Work, run, timed
from kvchat.documents.document_ids import compose
from kvchat.engine.context_window import tokens_of
from kvchat.engine.events import drain
from kvchat.engine.gates.check import lost, usual
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.specs import name_of
from kvchat.machine import resources as machine
from kvchat.terminal.text import first_line, seconds, size, sizes, unicode

WAITS = "what is read is kept; /more goes on with the prefill"


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
    try:
        run(chat, session.restore(turns), "restoring turns", tokens_of(turns))
    except Dropped:
        session.forgotten = turns  # they are of the chat still, and saved
        screen.tell("the document is there; the model no longer sees the turns before it")
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
