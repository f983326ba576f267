"""The terminal while kvchat works: notices, errors, progress bars. One owner at a time:
prompt-toolkit has the terminal while a line is read, this while anything else happens."""

import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from time import perf_counter
from typing import Any, Literal, TypeVar

from rich.console import Console
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from kvchat.engine import events
from kvchat.errors import KvchatError
from kvchat.terminal.live import away, drawn
from kvchat.terminal.log import LOG
from kvchat.terminal.text import WORDS, clean, laid, size

R = TypeVar("R")
Work = events.Loading | events.Progress | events.Smaller
W = TypeVar("W", bound=Work)
Pause = Callable[[], AbstractContextManager[None]]
NARROW = 18  # columns that the last of several needs
FRESH = 10.0  # seconds that the toolbar shows a notice
LONG = 10.0  # seconds of work after which its end is announced
NOTICES = {"off": "", "bell": "\a", "osc9": "\x1b]9;kvchat has finished reading\x1b\\"}
# Without a live bar: a line per tenth of the work, at most two a second, or per five seconds.
PLAIN_STEP, PLAIN_SOONEST, PLAIN_LATEST = 0.1, 0.5, 5.0


class Screen:
    """Everything but the answer goes to stderr; foreign text is never markup."""

    def __init__(
        self,
        quiet: bool = False,
        plain: bool = False,
        verbose: bool = False,
        color: str = "auto",
        notify: str = "off",
    ):
        dumb = os.environ.get("TERM") == "dumb" or WORDS.get(os.environ.get("KVCHAT_PLAIN", ""))
        system: Literal["auto"] | None = "auto" if color != "never" else None
        forced = True if color == "always" else None
        self.err = Console(
            stderr=True, highlight=False, markup=False, color_system=system, force_terminal=forced
        )
        self.err.soft_wrap = not self.err.is_terminal  # whole lines in a log
        self.out = Console(
            highlight=False, markup=False, color_system=system, force_terminal=forced
        )
        self.plain = bool(plain or dumb)
        self.live = sys.stderr.isatty() and not self.plain
        # block glyphs need UTF-8; plain mode leaves them out for screen readers
        self.glyphs = not self.plain and "utf" in (self.err.encoding or "").lower()
        self.quiet = quiet
        # off a terminal, one-shot runs are silent unless asked
        self.steps = not quiet and (verbose or plain or self.err.is_terminal)
        self._notice = NOTICES[notify] if self.live else ""
        self._fallback = ("", 0.0)
        self.warnings: list[str] = []
        self.observer: Callable[[Work | events.Restored | str], object] = lambda event: None

    @property
    def width(self) -> int:
        """Columns of the terminal, at least 40."""
        return max(self.err.width, 40)

    @property
    def line(self) -> int:
        """Columns of a line that should not wrap; whole lines go into a log."""
        return self.width if self.err.is_terminal else 1000

    def say(self, text: str, style: str = "") -> None:
        """A line for the person, on stderr."""
        LOG.info(clean(text))
        if self.steps:
            self.tell(text, style)

    def tell(self, text: str = "", style: str = "", indent: int = 2) -> None:
        """What a person asked for in the chat: shown even where progress is not.

        A line that is broken goes on with `indent` more columns.
        """
        self._print(clean(text), style, indent)

    def _print(self, text: str, style: str, indent: int = 2) -> None:
        if not self.err.soft_wrap:
            text = laid(text, self.width, indent)
        self.err.print(Text(text, style=style))

    def rows(self, rows: Iterable[Sequence[str]], indent: int = 2, gap: int = 2) -> None:
        """Lines in columns for the person; the last column wraps inside itself.

        Where it would be too narrow it stands below the others.
        """
        lines = [[clean(cell) for cell in row] for row in rows]
        before = [sum(len(cell) + gap for cell in row[:-1]) for row in lines if len(row) > 1]
        if before and self.width - indent - max(before) < NARROW:
            for *first, last in lines:
                self.tell(" " * indent + (" " * gap).join(first or [last]))
                if first and last:
                    self.tell(" " * (indent + 4) + last, indent=0)
            return
        table = Table.grid(padding=(0, gap, 0, 0))
        found = [[Text(cell) for cell in row] for row in lines]
        for index in range(max((len(row) for row in found), default=0)):
            is_last = index == len(found[0]) - 1
            table.add_column(no_wrap=not is_last, overflow="fold" if is_last else "ellipsis")
        for texts in found:
            table.add_row(*texts)
        self.err.print(Padding(table, (0, 0, 0, indent)), soft_wrap=False)

    @contextmanager
    def busy(self, label: str) -> Iterator[Callable[[], None]]:
        """A moving line while nothing can be counted; the given callable ends it early."""
        if not self.live or self.quiet:
            yield lambda: None
            return
        status = self.err.status(Text(label), refresh_per_second=8)
        with ExitStack() as area:
            area.enter_context(drawn(status))
            yield area.close

    @contextmanager
    def still(self) -> Iterator[Callable[[str], None]]:
        """A line that changes only when it is told to: no thread runs beside what is measured."""
        if not self.live or self.quiet:
            yield lambda text: None
            return
        with Live(console=self.err, auto_refresh=False, transient=True) as live:
            yield lambda text: live.update(Text(clean(text), no_wrap=True), refresh=True)

    def warn(self, text: str, short: str = "") -> None:
        """A notice about something that differs from what was asked; kept for `--json`.

        The toolbar shows the `short` form for a while.
        """
        self._fallback = (short, perf_counter())
        LOG.warning(clean(text))
        self.warnings.append(text)
        self.observer(text)
        if not self.quiet:
            self._print(f"kvchat: {clean(text)}", "yellow")

    @property
    def fallback(self) -> str:
        """The short form of the last notice while it is fresh."""
        text, when = self._fallback
        return text if perf_counter() - when < FRESH else ""

    def error(self, error: KvchatError) -> None:
        """What went wrong and the ways out."""
        LOG.error(clean(error.message))
        self._print(f"kvchat: error: {clean(error.message)}", "red")
        for way in error.tries:
            self._print(f"  try: {clean(way)}", "")

    def watch(
        self,
        work: Generator[W, None, R],
        label: str,
        tokens: int = 0,
        check: Callable[[Pause], None] = lambda pause: None,
    ) -> R:
        """Run `work` to its value behind a bar; `tokens` is the length of what is read.

        `check` is called after every event; it may raise, and it gets a context in which the
        terminal is free.
        """
        bar = _Bar(self, label, tokens) if self.live and not self.quiet else _Lines(self, label)
        bar.tokens = tokens
        begin = perf_counter()
        with bar:

            def show(event: W) -> None:
                self.observer(event)
                if isinstance(event, events.Smaller):
                    self.warn(
                        f"out of memory: going on with --prefill-chunk {event.chunk}",
                        f"chunk {event.chunk}",
                    )
                else:
                    bar.show(event)
                check(bar.pause)

            result = events.drain(work, show)
        if self._notice and perf_counter() - begin > LONG:
            self.err.file.write(self._notice)
            self.err.file.flush()
        return result


class _Lines:
    """Progress without a live area: a line now and then."""

    def __init__(self, screen: Screen, label: str):
        self.screen, self.label, self.tokens = screen, label, 0
        self.begin = self.shown_at = perf_counter()
        self.shown = 0.0

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to take away."""

    @contextmanager
    def pause(self) -> Iterator[None]:
        """The terminal is free anyway."""
        yield

    def show(self, event: events.Loading | events.Progress) -> None:
        """A line if one is due."""
        now, share = perf_counter(), event.done / max(event.total, 1)
        waited = now - self.shown_at
        due = share - self.shown >= PLAIN_STEP and waited >= PLAIN_SOONEST
        if due or waited >= PLAIN_LATEST:
            self.shown, self.shown_at = share, now
            if self.screen.steps:
                note = describe(event, self.tokens, now - self.begin)
                self.screen.err.print(f"kvchat: {self.label} {share:.0%} ({note})")


class _Bar:
    """A live bar that leaves nothing behind."""

    def __init__(self, screen: Screen, label: str, tokens: int):
        width = screen.width
        columns = (
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=24 if width >= 100 else 10 if width >= 72 else 4),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
            *([TimeRemainingColumn(compact=True)] if width >= 60 else []),
        )
        self.tokens, self.begin = tokens, perf_counter()
        self.progress = Progress(
            *columns, console=screen.err, transient=True, refresh_per_second=12
        )
        self.task = self.progress.add_task(label, total=None, note="")

    def __enter__(self) -> "_Bar":
        self._area = drawn(self.progress)
        self._area.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._area.__exit__(*error)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Take the bar away for a while."""
        with away():
            yield

    def show(self, event: events.Loading | events.Progress) -> None:
        """Move the bar."""
        note = describe(event, self.tokens, perf_counter() - self.begin)
        self.progress.update(self.task, completed=event.done, total=event.total, note=note)


def describe(event: events.Loading | events.Progress, tokens: int, elapsed: float) -> str:
    """The numbers beside a bar: bytes loaded, or layer, speed and KV kept so far."""
    if isinstance(event, events.Loading):
        return f"{size(event.done)} of {size(event.total)}"
    speed = tokens * event.done / event.total / max(elapsed, 1e-6)
    kept = f" · KV {size(event.kv_bytes)}" if event.kv_bytes else ""
    return f"layer {event.layer + 1}/{event.layers} · {speed:,.0f} tok/s{kept}"
