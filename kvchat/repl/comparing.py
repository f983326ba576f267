"""The answer to one question over two caches, and where the two answers part."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvchat.chat.chat import Chat
from kvchat.chat.prefill import Dropped, agreed, require_room, watched
from kvchat.chat.shortage import out_of_memory
from kvchat.chat.whole import whole
from kvchat.engine.events import TurnDone, drain
from kvchat.engine.methods import METHODS
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.full import Full
from kvchat.engine.methods.naming import name_of
from kvchat.engine.methods.spec import parse_method
from kvchat.engine.session import Session
from kvchat.errors import KvchatError
from kvchat.repl.turn import ask
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import kept_of


@dataclass(frozen=True)
class Trial:
    """An answer over one cache: its tokens, its numbers, and the bytes of that cache."""

    name: str
    done: TurnDone
    tokens: tuple[int, ...]
    kv: int
    full: int


def run(chat: Chat, screen: Screen, spec: str, question: str) -> None:
    """Answer the last question, or this one, with the chat's cache and with that of `spec`.

    Raises KvchatError.
    """
    session, present, _ = whole(chat)
    other = other_method(present, spec)
    if not question and not session.turns:
        raise KvchatError("usage", "nothing has been asked yet", f"/compare {spec} QUESTION")
    last = [] if question else session.turns[-1:]
    asked = question or last[0].question
    history = session.turns[: len(session.turns) - len(last)]
    ends, folds = tuple(session.ends), session.tail_budget
    beside = Session(session.engine, session.dialogue, ends, session.limit, folds)
    talk = sum(len(turn.ids) for turn in history)
    archives = [layer.archive for layer in session.cache.layers if layer.archive]
    chosen = session.engine.chosen(archives, other) if archives else None
    if chosen:
        screen.say(f"{name_of(other)} is chosen from the full copy: the document is not read again")
    else:
        require_room(chat, other, len(session.document))
        if not agreed(chat, screen, talk + len(session.document)):
            return
    if session.by_question and archives:
        screen.tell(f"{name_of(other)} keeps entries by the document's end, not by the question")
    try:
        if chosen:
            beside.adopt(chosen, session.document, session.method)
        else:
            work = beside.open(session.document, other, session.method)
            watched(work, screen, "comparing", len(session.document))
        watched(beside.restore(history), screen, "recalling", talk)
    except Dropped:
        screen.tell("stopped: nothing has changed")
        return
    except Exception as error:
        raise out_of_memory(chat, error) from error
    session.undo(len(last))
    try:
        mine = trial(chat, screen, f"{name_of(present)} {present.budget}", asked)
    finally:
        session.undo(len(session.turns) - len(history))
        drain(session.restore(last))
    chat.session = beside
    try:
        theirs = trial(chat, screen, f"{name_of(other)} {other.budget}", asked)
    finally:
        chat.session = session
    for line in difference(mine, theirs, session):
        screen.tell(line)


def other_method(present: Method, spec: str) -> Method:
    """The method to compare with. Raises KvchatError("usage") if it is the present one."""
    budget = None if isinstance(present, Full) else present.budget
    other = parse_method(spec, budget)
    if other == present:
        raise KvchatError(
            "usage",
            f"{spec} is what the chat uses",
            *(f"/compare {name}" for name in METHODS if name != name_of(present)),
        )
    return other


def trial(chat: Chat, screen: Screen, name: str, question: str) -> Trial:
    """Answer greedily over the chat's session and leave the turn there."""
    screen.tell(f"— {name} —", style="bold")
    sampling = replace(chat.settings.sampling, temperature=0.0)
    last = chat.last
    done = ask(chat, screen, question, sampling)
    chat.last = last
    session = chat.session
    tokens = session.turns[-1].tokens if done.completion_tokens else ()
    return Trial(name, done, tokens, session.memory().total, session.full_bytes())


def difference(mine: Trial, theirs: Trial, session: Session) -> Sequence[str]:
    """Speed and KV of both, and where their answers part."""
    width = max(len(mine.name), len(theirs.name))
    lines = [
        f"  {each.name:<{width}}  {each.done.completion_tokens:,} tokens, "
        f"{each.done.tokens_per_second:.1f} tok/s · KV {kept_of(each.kv, each.full)}"
        for each in (mine, theirs)
    ]
    at = first_difference(mine.tokens, theirs.tokens)
    if at is None:
        return [*lines, "  the answers are the same, token by token"]
    decode = session.dialogue.tokenizer.decode
    here, there = (decode(each.tokens[at : at + 1]) or "the end" for each in (mine, theirs))
    return [*lines, f"  first different token: number {at + 1:,}, {here!r} and {there!r}"]


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Index of the first token that differs; None if there is none."""
    for index in range(max(len(a), len(b))):
        if a[index : index + 1] != b[index : index + 1]:
            return index
    return None
