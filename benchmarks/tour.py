"""`docs/tour.svg`: a real run of the program in a terminal of 100 columns, with SmolLM2-135M.

python benchmarks/tour.py [--model FILE]    # needs the model (`make model`), pexpect and pyte

What is typed is below; everything else is what the program answered.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import pexpect
import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).parents[1]
MODEL = "smollm2-135m"
COLUMNS, ROWS, PATIENCE = 100, 40, 300
COMMAND = f"kvchat -m {MODEL} samples/skerry.txt --budget 25%"
TYPED = (
    "What is the name of the inn?",
    "How deep is the new well?",
    "/sources",
    "/search gannet head",
    "/show coverage",
    "/show memory",
)
# rich's form of a window without the font that it would fetch
FORM = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; white-space: pre; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: arial, sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


class Recorded:
    """The program in a terminal that nobody sees."""

    def __init__(self, arguments: list[str], home: Path):
        self.screen = pyte.HistoryScreen(COLUMNS, ROWS, history=2000, ratio=1)
        self._stream = pyte.ByteStream(self.screen)
        surroundings = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "OMP_WAIT_POLICY": "passive",
            **{f"XDG_{name}_HOME": str(home / name) for name in ("STATE", "CACHE", "CONFIG")},
        }
        self._child = pexpect.spawn(
            sys.executable,
            ["-m", "kvchat", *arguments],
            env=surroundings,
            cwd=str(ROOT),
            dimensions=(ROWS, COLUMNS),
        )

    def until_asked(self) -> None:
        """Wait for a prompt, with a toolbar below, that stays."""
        end, changed = time.monotonic() + PATIENCE, time.monotonic()
        while time.monotonic() < end:
            try:
                data = self._child.read_nonblocking(2**16, 0.1)
                changed = time.monotonic()
                self._stream.feed(data)
                if b"\x1b[6n" in data:  # where is the cursor?
                    at = self.screen.cursor
                    self._child.send(f"\x1b[{at.y + 1};{at.x + 1}R")
            except pexpect.TIMEOUT:
                pass
            rows = [row.rstrip() for row in self.screen.display if row.strip()]
            if ">" in rows[-3:] and time.monotonic() - changed > 1:
                return
        raise TimeoutError("\n".join(self.screen.display))

    def type(self, line: str) -> None:
        """A line and Enter."""
        for character in line:
            self._child.send(character)
        time.sleep(0.5)
        self._child.send("\r")
        time.sleep(0.5)
        self.until_asked()

    def close(self) -> None:
        """Leave."""
        self._child.send("\x04")
        self._child.close(force=True)

    def lines(self) -> list[Text]:
        """Everything that was shown, in its colours."""
        rows = [*self.screen.history.top, *(self.screen.buffer[y] for y in range(ROWS))]
        found = [line_of(row) for row in rows]
        while found and not found[-1].plain.strip():
            found.pop()
        return found


def line_of(row: dict[int, pyte.screens.Char]) -> Text:
    """A row of the terminal."""
    text, run, last = Text(), "", Style()
    for x in range(COLUMNS):
        cell = row[x]
        color = cell.fg.removeprefix("bright").replace("brown", "yellow")
        named = color if not cell.fg.startswith("bright") else f"bright_{color}"
        hexed = f"#{color}" if len(color) == 6 and set(color) <= set("0123456789abcdef") else named
        style = Style(
            color=None if cell.fg == "default" else hexed,
            bold=cell.bold,
            italic=cell.italics,
            reverse=cell.reverse,
        )
        if style != last:  # one element of the picture for letters of one style
            text.append(run, last)
            run, last = "", style
        run += cell.data
    text.append(run, last)
    text.rstrip()
    return text


def main() -> None:
    """Run it and write the picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help=f"file or folder of {MODEL}, if not in models/")
    parser.add_argument("--out", default=str(ROOT / "docs" / "tour.svg"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        if given.model:
            config = home / "CONFIG" / "kvchat" / "config.toml"
            config.parent.mkdir(parents=True)
            path = Path(given.model).resolve()
            config.write_text(f'[models."{MODEL}"]\npath = "{path}"\n')
        warm = Recorded([*COMMAND.split()[1:3], "README.md", "-c", "8k", "--budget", "25%",
                         "--overflow", "tail", "--no-save"], home)  # fmt: skip
        warm.until_asked()  # a first start compiles what a second one has
        warm.type("Why?")
        warm.close()
        program = Recorded(COMMAND.split()[1:], home)
        program.until_asked()
        for line in TYPED:
            program.type(line)
        lines = program.lines()
        program.close()
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(Text(f"$ {COMMAND}", "bold"))
    for line in lines:
        console.print(line, soft_wrap=True)
    console.save_svg(given.out, title="kvchat", theme=MONOKAI, code_format=FORM, unique_id="kvchat")


if __name__ == "__main__":
    main()
