"""Commands about what is kept of the KV cache: method, budget, selection, comparison."""

from collections.abc import Iterable
from dataclasses import replace

from kvchat.chat import auto
from kvchat.chat.attach import by_memory
from kvchat.chat.chat import Chat
from kvchat.chat.recompress import recompress
from kvchat.engine.budget import FORMS, Budget
from kvchat.engine.methods import AUTO, BY_QUESTION, METHODS
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.build import switched, with_budget
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.specs import method_options, name_of, options
from kvchat.errors import KvchatError
from kvchat.repl import comparing
from kvchat.repl.commands.context import Context
from kvchat.settings.options import SAVED_CHAT
from kvchat.terminal.text import first_line, ratio

UNQUANTIZED = "full:bits=16"
COMPARED = ("full", "kvzip", "snapkv", "streamingllm")  # what is named to compare with


def method(context: Context, argument: str) -> None:
    """show or change the compression method

    A SPEC is a name with options: adakv, adakv:window=16,floor=0.3; auto is what memory allows.
    Options of the command line and of `[methods.NAME]` in config.toml hold where SPEC says nothing
    else; budget and bits stay.
    Evicted entries are gone, so documents and turns are processed again, unless they are cached.
    """
    chat = context.chat
    if not argument:
        now = name_of(chat.method)
        rows = ((f"{'→ '[name != now]} {name}", entry.idea) for name, entry in METHODS.items())
        context.screen.columns(rows, indent=0, gap=1)
        context.screen.tell(f"now: {full_spec(chat)}")
        return
    wanted = by_memory(chat, chat.book) if argument == AUTO else method_of(chat, argument)
    if recompress(chat, method=wanted):
        context.writer.changed(chat)


def full_spec(chat: Chat) -> str:
    """The chat's method with its budget and all its options."""
    if chat.method == Full():
        return "full (every KV pair)"
    values = {"budget": chat.method.budget, **method_options(chat.method)}
    return f"{name_of(chat.method)}:{', '.join(f'{key}={value}' for key, value in values.items())}"


def method_of(chat: Chat, spec: str) -> Method:
    """The method of a SPEC that was typed in the chat.

    What SPEC leaves open is as `[methods.NAME]` has it, or as `-O` had it if this method has such
    an option; budget and bits are those of the present method. Raises KvchatError("usage").
    """
    asked, given = chat.options, list[str]()
    if asked.origin("method_options") != SAVED_CHAT:  # those are all of the saved method's
        given = [*asked.method_options]
        if METHODS[name_of(chat.method)].retrieves and asked.kv_bits:  # it says nothing of bits
            given.append(f"bits={asked.kv_bits}")
    return switched(spec, chat.method, asked.usual_of(spec), given)


def budget(context: Context, argument: str) -> None:
    """show or change the cache budget

    SIZE is a share of all entries (25%), tokens per KV head (2048) or bytes (1.5GiB). Documents and
    turns are processed again, unless they are cached.
    """
    chat = context.chat
    if not argument:
        of_bytes = ratio(chat.document_kept(), chat.document_full())
        line = f"budget {chat.method.budget} · of the documents {100 * chat.kept_share():.3g} % of "
        line += f"entries are kept, of bytes {of_bytes}"
        if share := chat.attended_share():
            line += f" · each decoded token attends to {share} of them"
        context.screen.tell(line)
        context.screen.tell(f"/budget takes {FORMS}")
        return
    wanted = Budget.parse(argument)
    method = chat.method
    if "budget" not in options(name_of(method)):  # it keeps everything
        plain = replace(chat.options, budget=None, method_options=())
        method = auto.unseen(plain, chat.session.engine.gate is not None)
    changed = with_budget(method, wanted)
    if recompress(chat, method=changed, questions=chat.chosen_for):
        context.writer.changed(chat)


def select(context: Context, argument: str) -> None:
    """select anew what is kept, by a question

    Entries that were selected by the documents' end may miss what a question asks for. Those that
    are selected by a question fit that one, and others less. Without QUESTION: by the last one.
    `/select -`: by the documents' end, as at the start. Both process the documents again, unless a
    full copy is kept; `-` does so in any case.
    """
    chat = context.chat
    if not chat.book.files:
        raise KvchatError("usage", "there is no document to select of", "/file book.txt")
    if argument == "-":
        if recompress(chat, fresh=True):
            context.writer.changed(chat)
        return
    if not chat.method.needs.sees:
        raise KvchatError(
            "usage",
            f"{name_of(chat.method)} is query-agnostic: it keeps the same whatever is asked",
            f"/method {BY_QUESTION}",
            "/select -  (processes the documents again)",
        )
    question = argument or (chat.session.turns[-1].question if chat.session.turns else "")
    if not question:
        raise KvchatError("usage", "nothing has been asked yet", "/select QUESTION", "/select -")
    if recompress(chat, questions=[question]):
        context.writer.changed(chat)
        context.screen.tell(f"selected for {first_line(question)!r}")


def compare(context: Context, argument: str) -> None:
    """answer again over another cache

    Without SPEC that is the full cache, not quantized; without QUESTION the last one is asked.
    `/compare snapkv:budget=10%`, `/compare full WHAT IS …?`. Both answers are greedy; the chat does
    not change. The other cache is built beside the present one, or selected from a full copy.
    """
    chat = context.chat
    if not chat.book.files:
        raise KvchatError("usage", "there is no document to compare caches of", "/file book.txt")
    first, _, question = argument.partition(" ")
    if first.partition(":")[0].partition("@")[0] not in METHODS:
        first, question = UNQUANTIZED, argument
    other = method_of(chat, first)
    if other == chat.method:
        names = [name for name in COMPARED if name != name_of(other)]
        ways = (f"/compare {name}" for name in names)
        raise KvchatError("usage", f"{first} is what the chat uses", *ways, "kvchat methods")
    comparing.run(chat, context.screen, other, question.strip())


def completes(context: Context, typed: str) -> Iterable[str]:
    """Methods, then their options after a colon."""
    name, colon, rest = typed.partition(":")
    if not colon:
        return [AUTO, *METHODS]
    if name not in METHODS:
        return ()
    before = rest.rpartition(",")[0]
    head = f"{name}:{before}," if before else f"{name}:"
    return [f"{head}{option}=" for option in options(name)]
