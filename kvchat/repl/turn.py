"""Asks a question and shows the answer while it is written: for the chat and for `-p` alike."""

import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from time import perf_counter

from kvchat.chat.chat import Chat
from kvchat.chat.citing import line, sources
from kvchat.engine.decode.sampler import Constraint
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import (
    Delta,
    Forgotten,
    Progress,
    Smaller,
    Thought,
    TurnDone,
    Unending,
)
from kvchat.terminal.answer_view import LiveAnswer, PlainAnswer
from kvchat.terminal.colours import FAINT
from kvchat.terminal.interrupt import Interrupt
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import counted, fitted, kept_of, seconds

QUESTION = "processing the question"


class Meter:
    """The line of numbers under an answer that is being written."""

    def __init__(self, chat: Chat, interrupt: Interrupt):
        self._chat, self._interrupt = chat, interrupt
        self._begin = perf_counter()
        self._first = self._last = 0.0
        self._tokens = 0
        self._layer = ""
        self.thinks, self._thought = False, 0

    def see(self, event: Progress | Thought | Delta) -> None:
        """Take in an event."""
        if isinstance(event, Progress):
            self._layer = f"layer {event.layer + 1}/{event.layers} · "
            return
        self._last, self._tokens = perf_counter(), event.tokens
        self._first = self._first or self._last
        self.thinks = isinstance(event, Thought)
        if self.thinks:
            self._thought = event.tokens

    @property
    def thought(self) -> str:
        """The line that stays of a thought."""
        took = seconds(perf_counter() - self._first)
        return f"thought for {took} ({counted(self._thought, 'token')})"

    def __str__(self) -> str:
        stop = "interrupting…" if self._interrupt.asked() else "Ctrl-C interrupts"
        if not self._tokens:
            waited = seconds(perf_counter() - self._begin)
            return f"▌ {QUESTION} · {self._layer}{waited} · {stop}"
        session = self._chat.session
        speed = (self._tokens - 1) / max(self._last - self._first, 1e-6)
        kv = kept_of(session.memory().total, session.full_bytes())
        doing = "thinking · " if self.thinks else ""
        return (
            f"▌ {doing}{self._tokens:,} tok · {speed:.1f} tok/s · first "
            f"{seconds(self._first - self._begin)} · KV {kv} · {stop}"
        )


def ask(
    chat: Chat,
    screen: Screen,
    question: str | None,
    sampling: Sampling | None = None,
    on_delta: Callable[[str], object] | None = None,
    on_thought: Callable[[str], object] | None = None,
    constraint: Constraint | None = None,
) -> TurnDone:
    """Ask and show the answer as it comes, or go on with the last one if `question` is None.

    `on_delta` takes the text in place of stdout, `on_thought` that of the model's thought, of which
    a chat keeps one line. `constraint`: the form that an answer has to have. Raises KvchatError.
    """
    options, session, done, whole = chat.options, chat.session, None, ""
    thinks = options.thinks
    begin = session.more
    if question is not None:
        thinks = thinks if constraint is None else False  # a thought has another form
        begin = partial(session.ask, question, thinks=thinks, constraint=constraint)
    shows = options.stream and options.think != "hide"
    leaves = on_delta is None and not options.prompts
    with Interrupt() as interrupt:
        meter = Meter(chat, interrupt)
        work = begin(sampling or options.sampling, options.longest, options.stop, interrupt.asked)
        view: LiveAnswer | PlainAnswer
        if on_delta is None and screen.live and sys.stdout.isatty():
            earlier = session.turns[-1].answer if question is None and session.turns else ""
            view = LiveAnswer(screen.out, lambda: str(meter), options.markdown, earlier)
        else:
            aside = screen.whisper if leaves else on_thought
            view = PlainAnswer(screen.busy(QUESTION), on_delta, aside, options.raw)
        with view, closing(work) as turn:
            for event in turn:
                if isinstance(event, TurnDone):
                    done = event
                elif isinstance(event, Smaller):
                    screen.warn(
                        f"out of memory: going on with chunks of {event.chunk} tokens",
                        f"chunk {event.chunk}",
                    )
                elif isinstance(event, Forgotten):
                    screen.warn(forgotten_line(event.turns, event.tokens), "window full")
                elif isinstance(event, Unending):
                    screen.warn(unending_line(event), "window full")
                else:
                    thought = meter.thinks
                    meter.see(event)
                    if isinstance(event, Thought):
                        if shows or on_thought:
                            view.think(event.text)
                    elif thought:
                        view.fold(meter.thought if leaves else "")
                    if isinstance(event, Delta) and chat.options.stream:
                        view.write(event.text)
                    elif isinstance(event, Delta):
                        whole += event.text
            if meter.thinks:  # and there is no answer
                view.fold(meter.thought if leaves else "")
            if whole:  # not streamed
                view.write(whole)
    assert done is not None, "every turn ends with TurnDone"
    chat.last = done
    return done


def turn_line(done: TurnDone, chat: Chat, width: int = 1000) -> str:
    """`212 tokens, 54.1 tok/s · first 0.06 s · KV 0.89 of 3.44 GiB`, and why it was cut.

    What is kept and why the answer was cut are in a line of any width.
    """
    session, form = chat.session, chat.options.stats
    kv = kept_of(session.memory().total, session.full_bytes())
    parts = [
        (f"{counted(done.completion_tokens, 'token')}, {done.tokens_per_second:.1f} tok/s", 1),
        (f"first {seconds(done.ttft)}", 2),
        (f"KV {kv}", 0),
    ]
    if form == "long":  # asked for: none is left out, the line may wrap
        parts = [(text, 0) for text, _ in parts]
        parts += [
            (f"question {done.prompt_tokens:,} tokens", 0),
            (f"decoding {seconds(done.decode_seconds)}", 0),
            (f"context {session.cache.rotary:,} of {session.limit:,}", 0),
            (f"seed {chat.options.sampling.seed}", 0),
        ]
    if session.question_seconds is not None:
        parts.append((f"KV selected for it in {seconds(session.question_seconds)}", 3))
    elif chat.in_view:
        parts.append(("KV selected for one question", 3))
    if cut := ending(done, chat):
        parts.append((cut, 0))
    return "  " + fitted(parts, width - 2)


def forgotten_line(turns: int, tokens: int) -> str:
    """That the model no longer sees the oldest turns."""
    were = "turn was" if turns == 1 else f"{turns:,} turns were"
    return (
        f"context window full: the oldest {were} dropped ({tokens:,} tokens); "
        "the saved chat and /export have all of them"
    )


def unending_line(event: Unending) -> str:
    """That the chat goes on where the window is full."""
    return (
        f"context window full: the chat goes on; of its {event.tokens:,} tokens the oldest "
        f"{event.compressed:,} are seen by {event.entries:,} entries of each head (/show window)"
    )


def say_turn(done: TurnDone, chat: Chat, screen: Screen) -> None:
    """Print what stays after a turn, where the answer is from and its numbers, as is wanted."""
    say_sources(chat, screen)
    if chat.options.stats != "off":
        screen.say(turn_line(done, chat, screen.line), style=FAINT)


def say_sources(chat: Chat, screen: Screen) -> None:
    """Say where the answer is from, if that can be told."""
    if chat.options.sources and (found := sources(chat)):
        screen.say("  " + line(found, chat, screen.line - 2), style=FAINT)


def ending(done: TurnDone, chat: Chat) -> str:
    """Why an answer was cut; empty for one that ended by itself."""
    only = "in the thought, " if done.reasoning_tokens and not done.answer else ""
    full = f"context window full ({chat.session.limit:,} tokens)"
    way = "/more continues, without the oldest turns" if len(chat.session.turns) > 1 else "/undo"
    if only and done.finish_reason == "stop":
        return "the model thought and ended without an answer"
    return only + {
        "window": f"{full} – {way}",
        "repetition": "repeated itself: ended, kept once – /retry",
        "length": f"token limit {chat.options.longest:,} – /more continues",
        "cancelled": "interrupted – /more continues",
    }.get(done.finish_reason, "")
