"""Commands about what is kept of the KV cache: method, budget, selection, comparison.

What reads is imported where it is called: listing needs no torch.
"""

from collections.abc import Iterable

from kvchat.engine.budget import FORMS, Budget
from kvchat.engine.methods import BY_QUESTION, METHODS
from kvchat.engine.methods.naming import method_options, name_of
from kvchat.errors import KvchatError
from kvchat.repl.commands.context import Context
from kvchat.terminal.text import first_line, ratio


def method(context: Context, argument: str) -> None:
    """show the methods, or `/method SPEC`: compress the document again with another one

    A spec is a name with options: adakv, adakv:window=16,floor=0.3. Evicted entries are gone,
    so the document and the turns so far are read again, unless such a reading was saved.
    """
    chat = context.chat
    if not argument:
        now = name_of(chat.method)
        rows = ((f"{'→ '[name != now]} {name}", entry.idea) for name, entry in METHODS.items())
        context.screen.rows(rows, indent=0, gap=1)
        values = method_options(chat.method).items()
        settings = ", ".join([f"budget={chat.method.budget}", *(f"{k}={v}" for k, v in values)])
        context.screen.tell(f"now: {now}:{settings}")
        return
    from kvchat.chat.prefill import read_again
    from kvchat.engine.methods.spec import parse_method

    budget = chat.method.budget if name_of(chat.method) != "full" else None
    if read_again(chat, context.screen, method=parse_method(argument, budget)):
        context.keeper.changed(chat)


def budget(context: Context, argument: str) -> None:
    """show the budget, or `/budget SIZE`: keep another share of the KV cache

    A share of all entries (25%), tokens per KV head (2048) or bytes (1.5GiB). The document and the
    turns so far are read again, unless such a reading was saved.
    """
    chat = context.chat
    if not argument:
        held, full = chat.document_kept(), chat.document_full()
        reads = f" · a written token reads {share}" if (share := chat.reads()) else ""
        kept = f"document keeps {100 * chat.kept_share():.3g} % of entries"
        context.screen.tell(
            f"budget {chat.method.budget} · {kept}, of bytes {ratio(held, full)}{reads}"
        )
        context.screen.tell(f"/budget takes {FORMS}")
        return
    wanted = Budget.parse(argument)
    from kvchat.chat.prefill import read_again
    from kvchat.chat.whole import whole
    from kvchat.engine.methods.spec import options, with_budget

    if "budget" not in options(name_of(chat.method)):
        raise KvchatError(
            "usage", f"{name_of(chat.method)} keeps everything and takes no budget", "/method adakv"
        )
    changed = with_budget(whole(chat).method, wanted)
    if read_again(chat, context.screen, method=changed, questions=chat.chosen_for):
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
    from kvchat.chat.prefill import read_again

    if argument == "-":
        if read_again(chat, context.screen, fresh=True):
            context.keeper.changed(chat)
        return
    if not chat.method.needs.sees:
        raise KvchatError(
            "usage",
            f"{name_of(chat.method)} keeps the same entries whatever is asked",
            f"/method {BY_QUESTION}",
            "/reread -  (reads again all the same)",
        )
    question = argument or (chat.session.turns[-1].question if chat.session.turns else "")
    if not question:
        raise KvchatError("usage", "nothing has been asked yet", "/reread QUESTION", "/reread -")
    if read_again(chat, context.screen, questions=[question]):
        context.keeper.changed(chat)
        context.screen.tell(f"what is kept now was chosen for {first_line(question)!r}")


def compare(context: Context, argument: str) -> None:
    """answer again with the full or another cache

    `/compare`, `/compare snapkv:budget=10%`, `/compare full WHAT IS …?`. Both answers are greedy;
    the conversation does not change. The other cache is read beside the present one, or chosen from
    a full copy that is kept.
    """
    chat = context.chat
    spec, question = split_argument(argument)
    if not chat.book.files:
        raise KvchatError("usage", "there is no document to compare caches of", "/file book.txt")
    from kvchat.repl import comparing

    comparing.run(chat, context.screen, spec, question)


def split_argument(argument: str) -> tuple[str, str]:
    """Method and question of `/compare`'s argument; the method is `full` if none is named."""
    first, _, rest = argument.partition(" ")
    if first.partition(":")[0].partition("@")[0] in METHODS:
        return first, rest.strip()
    return "full", argument


def completes(context: Context, typed: str) -> Iterable[str]:
    """Methods, then their options after a colon."""
    name, colon, rest = typed.partition(":")
    if not colon:
        return METHODS
    if name not in METHODS:
        return ()
    from kvchat.engine.methods.spec import options

    before = rest.rpartition(",")[0]
    head = f"{name}:{before}," if before else f"{name}:"
    return [f"{head}{option}=" for option in options(name)]
