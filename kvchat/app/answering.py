"""Asks a question and shows the answer while it is written: for the chat and for `-p` alike."""

import sys
from collections.abc import Callable, Generator
from contextlib import closing
from time import perf_counter

from kvchat.app.answer import LiveAnswer, PlainAnswer
from kvchat.app.chat import Chat
from kvchat.app.interrupt import Interrupt
from kvchat.app.screen import Screen
from kvchat.app.text import kept_of, seconds
from kvchat.engine.events import Delta, Progress, Smaller, TurnDone
from kvchat.engine.sampling import Sampling

Turn = Generator[Progress | Smaller | Delta | TurnDone, None, None]
ENDS = {"stop": "end of turn", "cancelled": "stopped by you"}


class Meter:
    """The line of numbers under an answer that is being written."""

    def __init__(self, chat: Chat, interrupt: Interrupt):
        self._chat, self._interrupt = chat, interrupt
        self._begin = perf_counter()
        self._first = self._last = 0.0
        self._tokens = 0
        self._reading = ""

    def see(self, event: Progress | Delta) -> None:
        """Take in an event."""
        if isinstance(event, Progress):
            self._reading = f"layer {event.layer + 1}/{event.layers} · "
            return
        self._last, self._tokens = perf_counter(), event.tokens
        self._first = self._first or self._last

    def __str__(self) -> str:
        stop = "stopping…" if self._interrupt.asked() else "Ctrl-C stops"
        if not self._tokens:
            waited = seconds(perf_counter() - self._begin)
            return f"▌ reading the question · {self._reading}{waited} · {stop}"
        session = self._chat.session
        speed = (self._tokens - 1) / max(self._last - self._first, 1e-6)
        kv = kept_of(session.memory().total, session.full_bytes())
        return (
            f"▌ {self._tokens:,} tok · {speed:.1f} tok/s · first "
            f"{seconds(self._first - self._begin)} · KV {kv} · {stop}"
        )


def ask(
    chat: Chat,
    screen: Screen,
    question: str,
    sampling: Sampling | None = None,
    on_delta: Callable[[str], object] | None = None,
) -> TurnDone:
    """Ask, stream, keep: `on_delta` takes the text in place of stdout. Raises KvchatError."""

    def begin(interrupt: Interrupt) -> Turn:
        settings = chat.settings
        return chat.session.ask(
            question,
            sampling or settings.sampling,
            settings.max_tokens,
            settings.stop,
            interrupt.asked,
        )

    return streamed(chat, screen, begin, on_delta)


def more(chat: Chat, screen: Screen) -> TurnDone:
    """Go on with the last answer. Raises KvchatError("usage") if it has ended."""
    settings = chat.settings

    def begin(interrupt: Interrupt) -> Turn:
        return chat.session.more(
            settings.sampling, settings.max_tokens, settings.stop, interrupt.asked
        )

    return streamed(chat, screen, begin)


def streamed(
    chat: Chat,
    screen: Screen,
    begin: Callable[[Interrupt], Turn],
    on_delta: Callable[[str], object] | None = None,
) -> TurnDone:
    """Run a turn to its end and show it as it comes."""
    done = None
    with Interrupt() as interrupt:
        meter = Meter(chat, interrupt)
        view: LiveAnswer | PlainAnswer
        if on_delta is None and screen.live and sys.stdout.isatty():
            view = LiveAnswer(screen.out, lambda: str(meter), chat.settings.markdown)
        else:
            view = PlainAnswer(screen.busy("reading the question"), on_delta)
        with view, closing(begin(interrupt)) as turn:
            for event in turn:
                if isinstance(event, TurnDone):
                    done = event
                elif isinstance(event, Smaller):
                    screen.warn(f"out of memory: going on with chunks of {event.chunk} tokens")
                else:
                    meter.see(event)
                    if isinstance(event, Delta):
                        view.write(event.text)
    assert done is not None, "every turn ends with TurnDone"
    chat.last = done
    return done


def turn_line(done: TurnDone, chat: Chat) -> str:
    """`212 tokens, 54.1 tok/s · first 0.06 s · KV 0.89 of 3.44 GiB · end of turn`."""
    session, form = chat.session, chat.settings.stats
    kv = kept_of(session.memory().total, session.full_bytes())
    parts = [
        f"{done.completion_tokens:,} tokens, {done.tokens_per_second:.1f} tok/s",
        f"first {seconds(done.ttft)}",
        f"KV {kv}",
    ]
    if form == "long":
        parts += [
            f"question {done.prompt_tokens:,} tokens",
            f"writing {seconds(done.decode_seconds)}",
            f"window {session.cache.position:,} of {session.limit:,}",
            f"seed {chat.settings.sampling.seed}",
        ]
    if chat.in_view:
        parts.append("kept set from one question")
    return "  " + " · ".join([*parts, ending(done, chat)])


def ending(done: TurnDone, chat: Chat) -> str:
    """Why an answer ended."""
    if done.finish_reason == "window":
        return f"window full ({chat.session.limit:,} tokens) – /undo or /clear"
    if done.finish_reason == "length":
        return f"token limit {chat.settings.max_tokens:,} – /more continues"
    return ENDS[done.finish_reason]
