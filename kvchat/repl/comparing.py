"""The answer to one question over two caches, and where the two answers part."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

from kvchat.chat.chat import Chat
from kvchat.chat.recompress import agreed, require_room
from kvchat.chat.work import Dropped
from kvchat.chat.work import run as watched
from kvchat.engine.events import Turn, drain
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.specs import name_of
from kvchat.engine.session import Session
from kvchat.errors import KvchatError
from kvchat.repl.turn import ask
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import kept_of

Trial = tuple[str, str, tuple[int, ...]]  # an answer: over which cache, its numbers, its tokens


def run(chat: Chat, screen: Screen, other: Method, question: str) -> None:
    """Answer the last question, or this one, with the chat's cache and with that of `other`.

    Raises KvchatError.
    """
    session, present = chat.session, chat.method
    if not question and not session.turns:
        raise KvchatError("usage", "nothing has been asked yet", "/compare full QUESTION")
    last = [] if question else session.turns[-1:]
    asked = question or last[0].question
    history = session.turns[: len(session.turns) - len(last)]
    beside = built(chat, screen, other, history)
    if beside is None:
        return
    turns, forgotten = [*session.turns], [*session.forgotten]
    session.undo(len(last))
    before = len(session.all_turns)
    try:
        mine = trial(chat, screen, present, asked)
    finally:
        session.undo(len(session.all_turns) - before)
        drain(session.restore(last))
        if len(session.forgotten) > len(forgotten):  # they made room for the one that is gone
            drain(session.back(turns, forgotten))
    chat.session = beside
    try:
        theirs = trial(chat, screen, other, asked)
    finally:
        chat.session = session
    screen.columns((name, numbers) for name, numbers, _ in (mine, theirs))
    at = first_difference(mine[2], theirs[2])
    if at is None:
        screen.tell("  the answers are the same, token by token")
        return
    decode = session.dialogue.tokenizer.decode
    here, there = (decode(tokens[at : at + 1]) or "the end" for _, _, tokens in (mine, theirs))
    screen.tell(f"  first different token: number {at + 1:,}, {here!r} and {there!r}")


def built(chat: Chat, screen: Screen, other: Method, history: Sequence[Turn]) -> Session | None:
    """A session beside the chat's, with the same documents and these turns; None if the person
    would rather not. Raises KvchatError."""
    session = chat.session
    engine, document = session.engine, session.document
    beside = Session(
        engine,
        session.dialogue,
        tuple(session.ends),
        session.limit,
        session.tail_budget,
        streams=session.streams,
        cascade=session.cascade,
    )
    talk = sum(len(turn.ids) for turn in history)
    alone = engine.peers.count == 1  # or the other ranks' copies would be wanted too
    archives = [layer.archive for layer in session.cache.layers if layer.archive and alone]
    selected = engine.chosen(archives, other) if archives else None
    if selected:
        screen.say(f"{name_of(other)} is selected from the full copy: nothing is processed again")
    else:
        require_room(chat, other, len(document))
        if not agreed(chat, talk, len(document), other):
            return None
    if session.by_question and archives:
        screen.tell(f"{name_of(other)} selects by the documents' end, not by the question")
    try:
        if selected:
            beside.adopt(selected, document, session.method)
        else:
            work = beside.prefill(document, other, session.method)
            watched(chat, work, "comparing", len(document))
        watched(chat, beside.restore(history), "restoring turns", talk)
    except Dropped:
        screen.tell("interrupted: nothing has changed")
        return None
    return beside


def trial(chat: Chat, screen: Screen, method: Method, question: str) -> Trial:
    """Answer greedily over the chat's session and leave the turn there."""
    name = f"{name_of(method)} {method.budget}"
    screen.tell(f"— {name} —", style="bold")
    last, session = chat.last, chat.session
    done = ask(chat, screen, question, replace(chat.options.sampling, temperature=0.0))
    chat.last = last
    speed = f"{done.completion_tokens:,} tokens, {done.tokens_per_second:.1f} tok/s"
    kept = kept_of(session.memory().total, session.full_bytes())
    tokens = session.turns[-1].tokens if done.completion_tokens else ()
    return name, f"{speed} · KV {kept}", tokens


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Index of the first token that differs; None if there is none."""
    pairs = enumerate(zip_longest(a, b))
    return next((index for index, (x, y) in pairs if x != y), None)
