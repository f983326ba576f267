"""Asks a question and shows the answer while it is written: for the chat and for `-p` alike."""

import sys
from collections.abc import Callable, Generator
from contextlib import closing
from time import perf_counter

from kvchat.chat.chat import Chat
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import Delta, Progress, Smaller, TurnDone
from kvchat.terminal.answer_view import LiveAnswer, PlainAnswer
from kvchat.terminal.interrupt import Interrupt
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import fitted, kept_of, seconds

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
    done, held = None, ""
    with Interrupt() as interrupt:
        meter = Meter(chat, interrupt)
        view: LiveAnswer | PlainAnswer
        if on_delta is None and screen.live and sys.stdout.isatty():
            settings = chat.settings
            view = LiveAnswer(screen.out, lambda: str(meter), settings.markdown, settings.theme)
        else:
            view = PlainAnswer(screen.busy("reading the question"), on_delta)
        with view, closing(begin(interrupt)) as turn:
            for event in turn:
                if isinstance(event, TurnDone):
                    done = event
                elif isinstance(event, Smaller):
                    screen.warn(
                        f"out of memory: going on with chunks of {event.chunk} tokens",
                        f"chunk {event.chunk}",
                    )
                else:
                    meter.see(event)
                    if isinstance(event, Delta) and chat.options.stream:
                        view.write(event.text)
                    elif isinstance(event, Delta):
                        held += event.text
            if held:
                view.write(held)
    assert done is not None, "every turn ends with TurnDone"
    chat.last = done
    return done


def turn_line(done: TurnDone, chat: Chat, width: int = 1000) -> str:
    """`212 tokens, 54.1 tok/s · first 0.06 s · KV 0.89 of 3.44 GiB · end of turn`.

    What was kept and why it ended are in a line of any width.
    """
    session, form = chat.session, chat.settings.stats
    kv = kept_of(session.memory().total, session.full_bytes())
    parts = [
        (f"{done.completion_tokens:,} tokens, {done.tokens_per_second:.1f} tok/s", 1),
        (f"first {seconds(done.ttft)}", 2),
        (f"KV {kv}", 0),
    ]
    if form == "long":  # asked for: none is left out, the line may wrap
        parts = [(text, 0) for text, _ in parts]
        parts += [
            (f"question {done.prompt_tokens:,} tokens", 0),
            (f"writing {seconds(done.decode_seconds)}", 0),
            (f"window {session.cache.position:,} of {session.limit:,}", 0),
            (f"seed {chat.settings.sampling.seed}", 0),
        ]
    if session.question_seconds is not None:
        parts.append((f"entries chosen for it in {seconds(session.question_seconds)}", 3))
    elif chat.in_view:
        parts.append(("kept set from one question", 3))
    return "  " + fitted([*parts, (ending(done, chat), 0)], width - 2)


def say_turn(done: TurnDone, chat: Chat, screen: Screen) -> None:
    """Print the line that stays after a turn, unless the person wants none."""
    if chat.settings.stats != "off":
        screen.say(turn_line(done, chat, screen.line), style="dim")


def ending(done: TurnDone, chat: Chat) -> str:
    """Why an answer ended."""
    if done.finish_reason == "window":
        return f"window full ({chat.session.limit:,} tokens) – /undo or /clear"
    if done.finish_reason == "length":
        return f"token limit {chat.settings.max_tokens:,} – /more continues"
    return ENDS[done.finish_reason]
