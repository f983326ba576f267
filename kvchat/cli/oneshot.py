"""`-p`: answers on stdout, one reading for all questions, then the end."""

import json
import sys
from time import perf_counter
from typing import Any

from kvchat.chat.chat import Chat
from kvchat.chat.chatlog_writer import Keeper
from kvchat.chat.resume import open_or_resume
from kvchat.cli.json_answer import report
from kvchat.engine.events import Loading, Progress, Restored, Smaller
from kvchat.repl.turn import ask
from kvchat.settings.options import Options
from kvchat.terminal.interrupt import Interrupt
from kvchat.terminal.screen import Screen, Work
from kvchat.terminal.text import unicode


def run(options: Options, screen: Screen) -> int:
    """Ask every prompt about the document, independently. Returns the exit code.

    In a chat that is gone on with (`--continue`, `--resume`, `--session`) the prompts are turns of
    it, and it is saved.
    """
    if options.jsonl:
        screen.observer = Reporter().see
    chat, keeper = open_or_resume(options, screen, interactive=False)
    with chat.readings:
        return answered(chat, keeper, screen)


def answered(chat: Chat, keeper: Keeper, screen: Screen) -> int:
    """Ask every prompt of the options. Returns the exit code."""
    options = chat.options
    talking = options.last or options.resume or options.session
    for prompt in options.prompts:
        if not talking:
            chat.session.clear()
        on_delta = None
        if options.machine_readable:
            on_delta = token if options.jsonl else lambda text: None
        with Interrupt() as calm:
            done = ask(chat, screen, unicode(prompt), on_delta=on_delta)
            if talking:
                keeper.turn(chat)
        if options.machine_readable:
            found = report(chat, done, screen.warnings)
            emit({"event": "done"} | found if options.jsonl else found)
        calm.leave_if_told()
        if done.finish_reason == "cancelled":
            raise KeyboardInterrupt
        if done.finish_reason in ("length", "window") and not options.machine_readable:
            limit = f"the window of {chat.session.limit:,} tokens is full"
            if done.finish_reason == "length":
                limit = f"token limit {chat.settings.max_tokens:,} (--max-tokens)"
            screen.warn(f"the answer was cut: {limit}")
    keeper.close()
    return 0


def emit(event: dict[str, Any]) -> None:
    """A JSON object on a line of its own."""
    # escapes keep control characters away from a terminal
    print(json.dumps(event, ensure_ascii=sys.stdout.isatty()), flush=True)


def token(text: str) -> None:
    """A piece of the answer for `--jsonl`."""
    emit({"event": "token", "text": text})


class Reporter:
    """`--jsonl`: what happens while kvchat works, a line each."""

    def __init__(self) -> None:
        self._begin = perf_counter()
        self._reading = False

    def see(self, event: Work | Restored | str) -> None:
        """Write down an event; a reading starts with one at 0 %."""
        if isinstance(event, str):
            emit({"event": "warning", "message": event})
        elif isinstance(event, Smaller):
            emit({"event": "warning", "message": "out of memory", "chunk": event.chunk})
        elif isinstance(event, Loading):
            emit({"event": "load", "done": event.done, "total": event.total})
        elif isinstance(event, Restored):
            whole = event.tokens * event.layers
            self._begin = perf_counter() - event.seconds
            all_done = Progress(event.layers - 1, event.layers, whole, whole, event.kv_bytes)
            self._prefill(all_done, whole, event.kv_bytes, cached=event.tokens)
        else:
            if not self._reading:
                self._reading, self._begin = True, perf_counter()
                self._prefill(event, 0, 0)
            self._prefill(event, event.done, event.kv_bytes)
            self._reading = event.done < event.total

    def _prefill(self, event: Progress, done: int, kv_bytes: int, cached: int = 0) -> None:
        emit(
            {
                "event": "prefill",
                "total": event.total // event.layers,
                "cache": cached,
                "processed": done // event.layers,
                "time_ms": round(1000 * (perf_counter() - self._begin)),
                "layer": event.layer,
                "layers": event.layers,
                "kv_bytes": kv_bytes,
            }
        )
