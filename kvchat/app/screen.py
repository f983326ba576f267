"""The terminal while kvchat works: notices, progress bars, streamed answers. One owner at a time:
prompt-toolkit has the terminal while a line is read, this while anything else happens."""

import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from kvchat.app.text import clean, size
from kvchat.engine import events
from kvchat.errors import KvchatError

R = TypeVar("R")
Work = events.Loading | events.Progress | events.Smaller
W = TypeVar("W", bound=Work)
# Without a live bar: a line per tenth of the work, at most two a second, or per five seconds.
PLAIN_STEP, PLAIN_SOONEST, PLAIN_LATEST = 0.1, 0.5, 5.0


class Screen:
    """Everything but the answer goes to stderr; foreign text is never markup."""

    def __init__(self, quiet: bool = False, plain: bool = False, verbose: bool = False):
        dumb = os.environ.get("TERM") == "dumb" or bool(os.environ.get("KVCHAT_PLAIN"))
        self.err = Console(stderr=True, highlight=False, markup=False)
        self.err.soft_wrap = not self.err.is_terminal  # whole lines in a log
        self.out = Console(highlight=False, markup=False)
        self.live = self.err.is_terminal and not (plain or dumb)
        self.quiet = quiet
        # off a terminal, one-shot runs are silent unless asked
        self.steps = not quiet and (verbose or plain or self.err.is_terminal)
        self.warnings: list[str] = []

    def say(self, text: str, style: str = "") -> None:
        """A line for the person, on stderr."""
        if self.steps:
            self.err.print(Text(clean(text), style=style))

    def tell(self, text: str) -> None:
        """What a person asked for in the chat: shown even where progress is not."""
        self.err.print(Text(clean(text)))

    @contextmanager
    def busy(self, label: str) -> Iterator[Callable[[], None]]:
        """A moving line while nothing can be counted; the given callable ends it early."""
        if not self.live:
            yield lambda: None
            return
        with self.err.status(label, refresh_per_second=8) as status:
            yield status.stop

    def warn(self, text: str) -> None:
        """A notice about something that differs from what was asked; kept for `--json`."""
        self.warnings.append(text)
        if not self.quiet:
            self.err.print(Text(f"kvchat: {clean(text)}", style="yellow"))

    def error(self, error: KvchatError) -> None:
        """What went wrong and the ways out."""
        self.err.print(Text(f"kvchat: error: {clean(error.message)}", style="red"))
        for way in error.tries:
            self.err.print(Text(f"  try: {clean(way)}"))

    def write(self, text: str) -> None:
        """A piece of the answer on stdout, as it is."""
        sys.stdout.write(clean(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()

    def watch(self, work: Generator[W, None, R], label: str, tokens: int = 0) -> R:
        """Run `work` to its value behind a bar; `tokens` is the length of what is read."""
        if not self.live:
            return self._watch_plain(work, label, tokens)
        columns = (
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(compact=True),
        )
        begin = perf_counter()
        with Progress(*columns, console=self.err, transient=True, refresh_per_second=12) as bar:
            task = bar.add_task(label, total=None, note="")

            def show(event: W) -> None:
                if isinstance(event, events.Smaller):
                    return self.warn(smaller(event))
                note = describe(event, tokens, perf_counter() - begin)
                bar.update(task, completed=event.done, total=event.total, note=note)

            return events.drain(work, show)

    def _watch_plain(self, work: Generator[W, None, R], label: str, tokens: int) -> R:
        begin = shown_at = perf_counter()
        shown = 0.0

        def show(event: W) -> None:
            nonlocal shown, shown_at
            if isinstance(event, events.Smaller):
                return self.warn(smaller(event))
            now, share = perf_counter(), event.done / event.total
            waited = now - shown_at
            due = share - shown >= PLAIN_STEP and waited >= PLAIN_SOONEST
            if due or waited >= PLAIN_LATEST:
                shown, shown_at = share, now
                if self.steps:
                    note = describe(event, tokens, now - begin)
                    self.err.print(f"kvchat: {label} {share:.0%} ({note})")

        return events.drain(work, show)


def describe(event: events.Loading | events.Progress, tokens: int, elapsed: float) -> str:
    """The numbers beside a bar: bytes loaded, or layer, speed and KV kept so far."""
    if isinstance(event, events.Loading):
        return f"{size(event.done)} of {size(event.total)}"
    speed = tokens * event.done / event.total / max(elapsed, 1e-6)
    kept = f" · KV {size(event.kv_bytes)} kept so far" if event.kv_bytes else ""
    return f"layer {event.layer + 1}/{event.layers} · {speed:,.0f} tok/s{kept}"


def smaller(event: events.Smaller) -> str:
    """What is said when memory ran out at a chunk."""
    return f"out of memory at a chunk: going on with --prefill-chunk {event.chunk}"
