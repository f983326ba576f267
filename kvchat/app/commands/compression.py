"""Commands about what is kept of the KV cache: method, budget, selection, comparison."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kvchat.app.answering import ask
from kvchat.app.commands.context import Context
from kvchat.app.reading import (
    Dropped,
    agreed,
    out_of_memory,
    read_again,
    require_room,
    watched,
)
from kvchat.app.text import kept_of, ratio
from kvchat.engine.budget import FORMS, Budget
from kvchat.engine.events import TurnDone, drain
from kvchat.engine.methods import BY_QUESTION, METHODS
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.full import Full
from kvchat.engine.methods.spec import method_options, name_of, options, parse_method, with_budget
from kvchat.engine.session import Session
from kvchat.errors import KvchatError


def method(context: Context, argument: str) -> None:
    """show the methods, or `/method SPEC`: compress the document again with another one

    A spec is a name with options: adakv, adakv:window=16,floor=0.3. Evicted rows are gone, so the
    document and the turns so far are read again, unless such a reading was saved.
    """
    chat = context.chat
    if not argument:
        now = name_of(chat.method)
        context.screen.rows(
            ("→" if name == now else "", name, entry.idea) for name, entry in METHODS.items()
        )
        values = method_options(chat.method).items()
        settings = ", ".join([f"budget={chat.method.budget}", *(f"{k}={v}" for k, v in values)])
        context.screen.tell(f"now: {now}:{settings}")
        return
    budget = None if isinstance(chat.method, Full) else chat.method.budget
    if read_again(chat, context.screen, method=parse_method(argument, budget)):
        context.keeper.changed(chat)


def budget(context: Context, argument: str) -> None:
    """show the budget, or `/budget SIZE`: keep another share of the KV cache

    A share of all rows (25%), tokens per KV head (2048) or bytes (1.5GiB). The document and the
    turns so far are read again, unless such a reading was saved.
    """
    chat = context.chat
    if not argument:
        held, full = chat.document_kept(), chat.document_full()
        reads = f" · a written token reads {share}" if (share := chat.reads()) else ""
        kept = f"document keeps {ratio(held, full)}"
        context.screen.tell(f"budget {chat.method.budget} · {kept}{reads}")
        context.screen.tell(f"/budget takes {FORMS}")
        return
    wanted = Budget.parse(argument)
    if "budget" not in options(name_of(chat.method)):
        raise KvchatError(
            "usage", f"{name_of(chat.method)} keeps everything and takes no budget", "/method adakv"
        )
    if read_again(chat, context.screen, method=with_budget(chat.method, wanted)):
        context.keeper.changed(chat)


def reread(context: Context, argument: str) -> None:
    """choose what to keep anew, for the last question

    `/reread QUESTION` chooses for that one, `/reread -` by the document's end, as at the start; the
    document is read again in any case, saved or not. Rows that were chosen by the end may miss what
    a question asks for. Chosen with a question in view they fit that question, and others less.
    """
    chat = context.chat
    if not chat.book.files:
        raise KvchatError("usage", "there is no document to read again", "/file book.txt")
    if argument == "-":
        read_again(chat, context.screen, fresh=True)
        return
    if not chat.method.needs.sees:
        raise KvchatError(
            "usage",
            f"{name_of(chat.method)} keeps the same rows whatever is asked",
            f"/method {BY_QUESTION}",
            "/reread -  (reads again all the same)",
        )
    question = argument or (chat.session.turns[-1].question if chat.session.turns else "")
    if not question:
        raise KvchatError("usage", "nothing has been asked yet", "/reread QUESTION", "/reread -")
    if read_again(chat, context.screen, questions=[question]):
        context.screen.tell(f"what is kept now was chosen for {question.splitlines()[0]!r}")


@dataclass(frozen=True)
class Trial:
    """An answer over one cache: its tokens, its numbers, and the bytes of that cache."""

    name: str
    done: TurnDone
    tokens: tuple[int, ...]
    kv: int
    full: int


def compare(context: Context, argument: str) -> None:
    """answer again with the full or another cache

    `/compare`, `/compare snapkv:budget=10%`, `/compare full WHAT IS …?`. Both answers are greedy;
    the conversation does not change. The other cache is read beside the present one.
    """
    chat, session = context.chat, context.chat.session
    spec, question = split_argument(argument)
    other = other_method(chat.method, spec)
    if not chat.book.files:
        raise KvchatError("usage", "there is no document to compare caches of", "/file book.txt")
    if not question and not session.turns:
        raise KvchatError("usage", "nothing has been asked yet", f"/compare {spec} QUESTION")
    last = [] if question else session.turns[-1:]
    asked = question or last[0].question
    history = session.turns[: len(session.turns) - len(last)]
    require_room(chat, other, len(session.document))
    tokens = len(session.document) + sum(len(turn.ids) for turn in history)
    if not agreed(chat, context.screen, tokens):
        return
    ends, folds = tuple(session.ends), session.tail_budget
    beside = Session(session.engine, session.dialogue, ends, session.limit, folds)
    try:
        work = beside.open(session.document, other, session.method)
        watched(work, context.screen, "comparing", len(session.document))
        watched(beside.restore(history), context.screen, "recalling", tokens)
    except Dropped:
        context.screen.tell("stopped: nothing has changed")
        return
    except Exception as error:
        raise out_of_memory(chat, error) from error
    session.undo(len(last))
    try:
        mine = trial(context, f"{name_of(chat.method)} {chat.method.budget}", asked)
    finally:
        session.undo(len(session.turns) - len(history))
        drain(session.restore(last))
    chat.session = beside
    try:
        theirs = trial(context, f"{name_of(other)} {other.budget}", asked)
    finally:
        chat.session = session
    for line in difference(mine, theirs, session):
        context.screen.tell(line)


def split_argument(argument: str) -> tuple[str, str]:
    """Method and question of `/compare`'s argument; the method is `full` if none is named."""
    first, _, rest = argument.partition(" ")
    if first.partition(":")[0].partition("@")[0] in METHODS:
        return first, rest.strip()
    return "full", argument


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


def trial(context: Context, name: str, question: str) -> Trial:
    """Answer greedily over the chat's session and leave the turn there."""
    chat = context.chat
    context.screen.tell(f"— {name} —", style="bold")
    sampling = replace(chat.settings.sampling, temperature=0.0)
    last = chat.last
    done = ask(chat, context.screen, question, sampling)
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


def completes(context: Context, typed: str) -> Iterable[str]:
    """Methods, then their options after a colon."""
    name, colon, rest = typed.partition(":")
    if not colon:
        return METHODS
    if name not in METHODS:
        return ()
    before = rest.rpartition(",")[0]
    head = f"{name}:{before}," if before else f"{name}:"
    return [f"{head}{option}=" for option in options(name)]
