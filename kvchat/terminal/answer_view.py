"""Shows an answer while it is written: finished blocks are printed once, the rest is a live area of
at most six lines and one line of numbers. Nothing that was printed is ever rendered again."""

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.segment import Segment, Segments
from rich.text import Text

from kvchat.terminal.colours import FAINT
from kvchat.terminal.live import shown
from kvchat.terminal.markdown import Blocks, Code, Prose, rendered
from kvchat.terminal.text import clean

LIVE_LINES = 6
FRAMES = 12  # a second, at most


class LiveAnswer:
    """A context that renders an answer block by block; `status` gives the line of numbers."""

    def __init__(
        self,
        console: Console,
        status: Callable[[], str],
        markdown: bool = True,
        before: str = "",
    ):
        """`before` is an earlier part of the answer: its last block, which is not finished, is
        rendered again with what comes."""
        self._console, self._status = console, status
        self._markdown = markdown
        self._blocks, self._thought = Blocks(), ""
        self._blocks.push(before)
        if before.endswith("\n\n") and not self._blocks.in_code:
            self._blocks = Blocks()  # that block is finished
        self._printed = self._after_code = False
        # rich's own thread could render between a block's place being cleared and its being printed
        self._turn, self._ended = threading.Lock(), threading.Event()
        self._clock = threading.Thread(target=self._refresh, name="frames", daemon=True)
        self._live = Live(
            console=console,
            get_renderable=self._frame,
            auto_refresh=False,
            transient=True,
            vertical_overflow="crop",
        )

    def __enter__(self) -> "LiveAnswer":
        self._area = shown(self._live)
        self._area.__enter__()
        self._clock.start()
        return self

    def _refresh(self) -> None:
        while not self._ended.wait(1 / FRAMES):
            with self._turn:
                self._live.refresh()

    def __exit__(self, *error: Any) -> None:
        try:
            self._print(self._blocks.close())
        finally:
            self._ended.set()
            try:
                self._clock.join()
            finally:
                self._area.__exit__(*error)

    def write(self, text: str) -> None:
        """Take in a piece of the answer."""
        self._print(self._blocks.push(text))

    def think(self, text: str) -> None:
        """Take in a piece of what the model thinks: dim, and only its last lines."""
        self._thought += text

    def fold(self, line: str) -> None:
        """A line, if there is one, takes the place of a thought that has ended."""
        with self._turn:
            self._thought = ""
            if line:
                self._console.print(Text(line, style=FAINT))
                self._printed = True

    def _print(self, blocks: list[Prose | Code]) -> None:
        for block in blocks:
            in_code = isinstance(block, Code)
            shown: RenderableType | None = Text(clean(block.text))
            if self._markdown or in_code:
                shown = rendered(block)
            with self._turn:
                if self._printed and not (in_code and self._after_code):
                    self._console.print()
                if shown is not None:
                    self._console.print(trimmed(self._console, shown), end="")
            self._printed, self._after_code = True, isinstance(block, Code) and not block.last

    def _frame(self) -> Group:
        width = max(self._console.width, 1)
        # more than this cannot be in the last lines, however they are broken
        text, style = self._blocks.rest, ""
        if self._thought:
            text, style = self._thought, FAINT
        rest = clean(text[-2 * width * LIVE_LINES :]).strip("\n")
        lines = [
            line[start : start + width]
            for line in rest.split("\n")
            for start in range(0, max(len(line), 1), width)
        ]
        parts = [
            Text(line, style=style, no_wrap=True, overflow="crop")
            for line in lines[-LIVE_LINES:]
            if rest
        ]
        status = self._status()
        if len(status) > width:
            status = status[: width - 1] + "…"
        return Group(*parts, Text(status, style=FAINT, no_wrap=True, overflow="crop"))


class PlainAnswer:
    """The same without a live area: pieces go to `sink` (stdout, ended by a newline) as they come.

    `waiting` is a context that shows movement until the first piece; it gives the way to end it.
    `aside` takes thoughts, which have no place beside answers otherwise. `raw`: what is no terminal
    gets control characters as they are; one may still show what is written to a file today.
    """

    def __init__(
        self,
        waiting: AbstractContextManager[Callable[[], None]],
        sink: Callable[[str], object] | None = None,
        aside: Callable[[str], object] | None = None,
        raw: bool = False,
    ):
        self._waiting, self._sink, self._aside, self._raw = waiting, sink, aside, raw
        self._begun, self._held = False, ""

    def __enter__(self) -> "PlainAnswer":
        self._answering = self._waiting.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._waiting.__exit__(*error)
        if self._sink is None:
            self.write("\n")

    def think(self, text: str) -> None:
        """Pass on a piece of what the model thinks."""
        if self._aside:
            self._answering()
            self._aside(text)
            self._begun = True

    def fold(self, line: str) -> None:
        """End a thought, by a line if there is one."""
        if self._aside and line:
            self._answering()
            self._aside(f"\n{line}\n" if self._begun else f"{line}\n")

    def write(self, text: str) -> None:
        """Pass on a piece; a terminal never sees its control characters."""
        self._answering()
        if self._sink:
            self._sink(text)
            return
        if not self._raw or sys.stdout.isatty():
            text = self._held + text
            self._held = "\r" if text.endswith("\r") else ""  # half of a line end, perhaps
            text = clean(text.removesuffix(self._held))
        sys.stdout.write(text)
        sys.stdout.flush()


def trimmed(console: Console, shown: RenderableType) -> Segments:
    """A block without the empty lines that some kinds of it begin or end with."""
    lines = console.render_lines(shown, pad=False)
    full = [i for i, line in enumerate(lines) if "".join(part.text for part in line).strip()]
    first, last = (full[0], full[-1]) if full else (0, 0)
    kept = lines[first : last + 1]
    return Segments([part for line in kept for part in (*line, Segment.line())])
