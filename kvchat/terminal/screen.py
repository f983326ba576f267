"""The terminal while kvchat works: notices, errors, progress bars. One owner at a time:
prompt-toolkit has the terminal while a line is read, this while anything else happens."""

import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from time import perf_counter
from typing import TypeVar

from rich.padding import Padding
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from kvchat.engine import events
from kvchat.errors import KvchatError
from kvchat.terminal.colours import ERROR, FAINT, NOTICE, console
from kvchat.terminal.live import away, shown
from kvchat.terminal.log import LOG
from kvchat.terminal.text import WORDS, clean, counted, laid, size

R = TypeVar("R")
Work = events.Loading | events.Progress | events.Smaller
W = TypeVar("W", bound=Work)
Pause = Callable[[], AbstractContextManager[None]]
LABEL = TextColumn("{task.description}", markup=False)
FRAMES = 12  # a second, of what moves
EXCERPT = 3  # lines of a text that is shown in part
NARROW = 18  # columns that the last of several needs
FRESH = 10.0  # seconds that the toolbar shows a notice
LONG = 10.0  # seconds of work after which its end is announced
NOTICES = {"off": "", "bell": "\a", "osc9": "\x1b]9;kvchat: prefill has ended\x1b\\"}
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
        self.err = console(color, stderr=True)
        self.err.soft_wrap = not self.err.is_terminal  # whole lines in a log
        self.out = console(color)
        self.plain = bool(plain or dumb)
        self.live = sys.stderr.isatty() and not self.plain
        # block glyphs need UTF-8; plain mode leaves them out for screen readers
        self.glyphs = not self.plain and "utf" in (self.err.encoding or "").lower()
        self.quiet = quiet
        # off a terminal, one-shot runs are silent unless asked
        self.steps = not quiet and (verbose or plain or self.err.is_terminal)
        self.named = True  # lines beside an answer begin with the program's name; not in the chat
        self._notice = NOTICES[notify] if self.live else ""
        self._fallback = ("", 0.0)
        self.warnings: list[str] = []
        self.observer: Callable[[Work | events.Restored | str], object] = lambda event: None

    @property
    def renders(self) -> bool:
        """Whether there are live lines."""
        return self.live and not self.quiet

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

    def passage(self, place: str, text: str, words: Sequence[str] = ()) -> None:
        """A passage of a document below its place, with some words in bold."""
        self.tell(f"  {place}", style=FAINT)
        shown = Text("\n".join(clean(line).strip() for line in text.split("\n")))
        shown.highlight_words([clean(word) for word in words], "bold", case_sensitive=False)
        self.err.print(Padding(shown, (0, 0, 0, 4)))

    def excerpt(self, text: str) -> None:
        """The first lines of a text that stands behind a mark, and how many follow."""
        lines = [clean(line) for line in text.splitlines() if line.strip()]
        for line in lines[:EXCERPT]:
            self.err.print(Text(f"    {line}", style=FAINT), no_wrap=True, overflow="ellipsis")
        if (more := len(lines) - EXCERPT) > 0:
            self.tell(f"    … {counted(more, 'line')} more", style=FAINT)

    def whisper(self, text: str) -> None:
        """A piece of text beside the answer, as it comes: what the model thinks."""
        self.err.print(Text(clean(text), style=FAINT), end="", soft_wrap=True)

    def columns(self, rows: Iterable[Sequence[str]], indent: int = 2, gap: int = 2) -> None:
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
        with ExitStack() as area:
            self._live(area, (SpinnerColumn(), LABEL), label)
            yield area.close

    @contextmanager
    def still(self) -> Iterator[Callable[[str], None]]:
        """A line that changes only when it is told to: no thread runs beside what is measured."""
        with ExitStack() as area:
            change = self._live(area, (LABEL,), "", moving=False)
            yield lambda text: change(description=clean(text), refresh=True)

    def _live(
        self, area: ExitStack, columns: Iterable[ProgressColumn], label: str, moving: bool = True
    ) -> Callable[..., None]:
        """Show a live line until the area is closed; gives the way to change it."""
        if not self.renders:
            return lambda **changes: None
        progress = Progress(
            *columns,
            console=self.err,
            transient=True,
            auto_refresh=moving,
            refresh_per_second=FRAMES,
        )
        area.enter_context(shown(progress))
        return partial(progress.update, progress.add_task(clean(label), total=None, note=""))

    def warn(self, text: str, short: str = "") -> None:
        """A notice about something that differs from what was asked; kept for `--json`.

        The toolbar shows the `short` form for a while.
        """
        self._fallback = (short, perf_counter())
        LOG.warning(clean(text))
        self.warnings.append(text)
        self.observer(text)
        if not self.quiet:
            self._print(f"{'kvchat: ' if self.named else ''}{clean(text)}", NOTICE)

    @property
    def fallback(self) -> str:
        """The short form of the last notice while it is fresh."""
        text, when = self._fallback
        return text if perf_counter() - when < FRESH else ""

    def error(self, error: KvchatError) -> None:
        """What went wrong and the ways out."""
        LOG.error(clean(error.message))
        self._print(f"kvchat: error: {clean(error.message)}", ERROR)
        for way in error.tries:
            self._print(f"  try: {clean(way)}", "")

    def watch(
        self,
        work: Generator[W, None, R],
        label: str,
        tokens: int = 0,
        check: Callable[[Pause], None] = lambda pause: None,
    ) -> R:
        """Run `work` to its value behind a bar; `tokens` is the length of the document.

        `check` is called after every event; it may raise, and it gets a context in which the
        terminal is free.
        """
        begin = perf_counter()
        with ExitStack() as area:
            move = self._live(area, self._bar(), label) if self.renders else self._lines(label)

            def show(event: W) -> None:
                self.observer(event)
                if isinstance(event, events.Smaller):
                    chunk = event.chunk
                    self.warn(
                        f"out of memory: going on with --prefill-chunk {chunk}", f"chunk {chunk}"
                    )
                else:
                    note = describe(event, tokens, perf_counter() - begin)
                    move(completed=event.done, total=event.total, note=note)
                check(away)

            result = events.drain(work, show)
        if self._notice and perf_counter() - begin > LONG:
            self.err.file.write(self._notice)
            self.err.file.flush()
        return result

    def _bar(self) -> list[ProgressColumn]:
        """Of a bar: label, bar, percentage, numbers and, where there is room, the time left."""
        width = self.width
        return [
            TextColumn("{task.description:<9}", markup=False),
            BarColumn(bar_width=24 if width >= 100 else 10 if width >= 72 else 4),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True)),
            *([TimeRemainingColumn(compact=True)] if width >= 60 else []),
        ]

    def _lines(self, label: str) -> Callable[..., None]:
        """Progress without a live line: a line now and then."""
        shown, shown_at = 0.0, perf_counter()

        def move(completed: float, total: float, note: str) -> None:
            nonlocal shown, shown_at
            now, share = perf_counter(), completed / max(total, 1)
            waited = now - shown_at
            due = share - shown >= PLAIN_STEP and waited >= PLAIN_SOONEST
            if due or waited >= PLAIN_LATEST:
                shown, shown_at = share, now
                if self.steps:
                    self.err.print(clean(f"kvchat: {label} {share:.0%} ({note})"))

        return move


def describe(event: events.Loading | events.Progress, tokens: int, elapsed: float) -> str:
    """The numbers beside a bar: bytes loaded, or layer, speed and KV kept so far."""
    if isinstance(event, events.Loading):
        return event.note or f"{size(event.done)} of {size(event.total)}"
    speed = tokens * event.done / event.total / max(elapsed, 1e-6)
    kept = f" · KV {size(event.kv_bytes)}" if event.kv_bytes else ""
    return f"layer {event.layer + 1}/{event.layers} · {speed:,.0f} tok/s{kept}"
