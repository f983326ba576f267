"""Slash commands: a table of functions whose first docstring line is the help text."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from time import perf_counter

from kvchat.app import machine
from kvchat.app.interrupt import Interrupt
from kvchat.app.plan import PROCESS, make_plan
from kvchat.app.screen import Screen
from kvchat.app.start import Chat, reading_line
from kvchat.app.text import ratio, size
from kvchat.engine.budget import FORMS, Budget
from kvchat.engine.methods import METHODS
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.full import Full
from kvchat.engine.methods.spec import method_options, name_of, options, parse_method, with_budget
from kvchat.errors import KvchatError


class Quit(Exception):
    """The person wants to leave."""


@dataclass
class Context:
    """What a command may touch."""

    chat: Chat
    screen: Screen


def help_(context: Context, argument: str) -> None:
    """list the commands; `/help NAME` says more about one"""
    if argument:
        command = COMMANDS[find(argument.lstrip("/"))]
        for line in (command.__doc__ or "").splitlines():
            context.screen.tell(line.strip())
        return
    for name, command in COMMANDS.items():
        context.screen.tell(f"  /{name:<8} {(command.__doc__ or '').splitlines()[0]}")
    context.screen.tell("  Alt-Enter new line · Ctrl-C stops an answer · Ctrl-D quits")


def method(context: Context, argument: str) -> None:
    """show the methods, or `/method SPEC`: compress the document again with another one

    A spec is a name with options: adakv, adakv:window=16,floor=0.3. Evicted rows are gone, so the
    document and the turns so far are read again.
    """
    chat = context.chat
    if not argument:
        now = name_of(chat.method)
        for name, entry in METHODS.items():
            context.screen.tell(f"{'→' if name == now else ' '} {name:<13} {entry.idea}")
        values = method_options(chat.method).items()
        settings = ", ".join([f"budget={chat.method.budget}", *(f"{k}={v}" for k, v in values)])
        context.screen.tell(f"now: {now}:{settings}")
        return
    budget = None if isinstance(chat.method, Full) else chat.method.budget
    read_again(context, parse_method(argument, budget))


def budget(context: Context, argument: str) -> None:
    """show the budget, or `/budget SIZE`: keep another share of the KV cache

    A share of all rows (25%), tokens per KV head (2048) or bytes (1.5GiB). The document and the
    turns so far are read again.
    """
    chat = context.chat
    if not argument:
        held = sum(s.memory().total for s in chat.session.cache.segments())
        full = len(chat.session.document) * chat.session.engine.kv_bytes_per_token
        context.screen.tell(f"budget {chat.method.budget} · document keeps {ratio(held, full)}")
        context.screen.tell(f"/budget takes {FORMS}")
        return
    wanted = Budget.parse(argument)
    if "budget" not in options(name_of(chat.method)):
        raise KvchatError(
            "usage", f"{name_of(chat.method)} keeps everything and takes no budget", "/method adakv"
        )
    read_again(context, with_budget(chat.method, wanted))


def memory(context: Context, argument: str) -> None:
    """where the memory is: weights, KV kept, KV if full, this process, what is free"""
    session = context.chat.session
    document = sum(s.memory().total for s in session.cache.segments())
    kept, full = session.memory().total, session.full_bytes()
    device = session.engine.device
    rows = [
        ("weights", session.engine.weights_bytes, ""),
        ("KV kept", kept, f"document {size(document)} + chat {size(kept - document)}"),
        ("this process", machine.resident(), "of RAM"),
        ("peak", machine.peak(device), f"on {device}"),
        ("free", machine.free(device), f"of {size(machine.total(device))} on {device}"),
    ]
    for name, count, note in rows:
        context.screen.tell(f"  {name:<13} {size(count):>11}  {note}".rstrip())
    if full:
        context.screen.tell(f"  KV in full would be {size(full)} · kept {ratio(kept, full)}")


def clear(context: Context, argument: str) -> None:
    """forget the conversation, keep the document"""
    context.chat.session.clear()
    context.screen.tell("conversation forgotten; the document is kept")


def quit_(context: Context, argument: str) -> None:
    """leave (also Ctrl-D)"""
    raise Quit


COMMANDS: dict[str, Callable[[Context, str], None]] = {
    "help": help_,
    "method": method,
    "budget": budget,
    "memory": memory,
    "clear": clear,
    "quit": quit_,
}
ALIASES = {"exit": "quit", "bye": "quit", "q": "quit"}


def find(name: str) -> str:
    """The command that `name` is, or begins, unambiguously. Raises KvchatError("usage")."""
    if name in COMMANDS:
        return name
    if name in ALIASES:
        return ALIASES[name]
    matches = [known for known in COMMANDS if name and known.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    close = matches or get_close_matches(name, [*COMMANDS, *ALIASES], n=1)
    raise KvchatError(
        "usage",
        f"unknown command /{name}",
        *(f"/{other}" for other in close or ["help"]),
        "start with a space to send it as text",
    )


def run(line: str, context: Context) -> None:
    """Run a line that begins with a slash; `/x?` is help on x."""
    word, _, argument = line[1:].partition(" ")
    if word.endswith("?") and len(word) > 1:
        word, argument = "help", word[:-1]
    COMMANDS[find(word)](context, argument.strip())


def read_again(context: Context, wanted: Method) -> None:
    """Read document and turns with another method; Ctrl-C keeps what there was."""
    chat, screen = context.chat, context.screen
    session, engine = chat.session, chat.session.engine
    plan = make_plan(
        engine.config,
        engine.dtype.itemsize,
        len(session.document),
        wanted.budget,
        session.limit,
        engine.chunk,
    )
    # weights and process are there already; the old cache stays until the new one is read
    needed = plan.reading - plan.weights - PROCESS
    free = machine.free(engine.device)
    if needed > free:
        raise KvchatError(
            "memory",
            f"reading again with {name_of(wanted)} needs {size(needed)}, {size(free)} are free "
            f"while the present cache is kept",
            "/budget 10%",
            needed=needed,
            free=free,
        )
    work = session.use(wanted)
    begin = perf_counter()
    with Interrupt() as interrupt:

        def watched():
            for event in work:
                if interrupt.asked():
                    raise KeyboardInterrupt
                yield event

        try:
            screen.watch(watched(), "reading", session.cache.position)
        except KeyboardInterrupt:
            screen.tell("stopped: nothing has changed")
            return
        finally:
            work.close()
    chat.method = wanted
    chat.timings["prefill"] = perf_counter() - begin
    if session.document:
        screen.tell(reading_line(chat))
