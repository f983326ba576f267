"""A real terminal for tests: a child on a pty whose output a screen emulator draws."""

import os
import re
import time
from pathlib import Path

import pexpect
import pyte

from tests.support import scripted_program
from tests.support.forked import Child

# a busy machine may take long; set it lower to see failures sooner
WAIT = float(os.environ.get("KVCHAT_TEST_WAIT", "60"))
PROMPT = r"(?m)^> *$"
TOOLBAR = r"\n[^\n]*ctx [^\n]*KV[^\n]*\s*\Z"
DONE = r"\d tokens, [\d.,]+ tok/s"  # the line after an answer


class _Screen(pyte.HistoryScreen):
    """A screen whose replies (cursor position reports) go back to the child."""

    reply = staticmethod(lambda data: None)

    def write_process_input(self, data: str) -> None:
        self.reply(data)


class Terminal:
    """`kvchat ARGUMENTS` in a terminal of `columns` by `rows`.

    With a `script` (see `scripted_program`) the answers are what it says. As a job (see `forked`)
    it can be suspended.
    """

    def __init__(
        self,
        arguments: list[str],
        home: Path,
        columns: int = 80,
        rows: int = 24,
        script: dict | None = None,
        is_job: bool = False,
        **environment: str,
    ):
        inherited = dict(os.environ)
        for name in ("COLUMNS", "LINES"):  # parallel tests set them; the terminal has its own size
            inherited.pop(name, None)
        surroundings = inherited | {
            "OMP_NUM_THREADS": "1",
            "TERM": "xterm-256color",
            "HOME": str(home),
            "XDG_STATE_HOME": str(home / "state"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "LANG": "C.UTF-8",
        }
        self.child = Child(
            arguments,
            prepare=lambda: None if script is None else scripted_program.play(script),
            is_job=is_job,
            dimensions=(rows, columns),
            env=surroundings | environment,
            timeout=60,
        )
        self.child.delaybeforesend = None
        self.screen = _Screen(columns, rows, history=5000, ratio=0.5)
        self.screen.reply = self.child.send
        self.stream = pyte.ByteStream(self.screen)

    def text(self) -> str:
        """Everything that was drawn: what scrolled away, then the screen."""
        above = [
            "".join(line[x].data for x in range(self.screen.columns)).rstrip()
            for line in self.screen.history.top
        ]
        return "\n".join([*above, *(line.rstrip() for line in self.screen.display)])

    def wait(self, pattern: str, seconds: float = WAIT) -> str:
        """Read until the drawn text matches; fails with what was drawn instead."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if re.search(pattern, self.text()):
                return self.text()
            self._read()
        raise AssertionError(f"no {pattern!r} within {seconds} s; drawn:\n{self.text()}")

    def send(self, keys: str, until: str = "") -> str:
        """Type, and read until the drawn text matches: that text."""
        self.child.send(keys)
        return self.wait(until) if until else ""

    def paste(self, text: str) -> None:
        """Paste much, as a terminal does: in pieces, while the other side draws, and without
        a reply to it in between."""
        data = f"\x1b[200~{text}\x1b[201~"
        replies: list[str] = []
        self.screen.reply = replies.append
        for start in range(0, len(data), 1024):
            self.child.send(data[start : start + 1024])
            self._read(0)
        self.screen.reply = self.child.send
        self.child.send("".join(replies))

    def resize(self, columns: int, rows: int) -> None:
        """Change the window's size."""
        self.screen.resize(rows, columns)
        self.child.setwinsize(rows, columns)

    def close(self) -> int:
        """Wait for the end and return the exit status."""
        end = time.monotonic() + WAIT
        while self.child.isalive() and time.monotonic() < end:
            self._read()
        while self._read():  # what was drawn last is still on its way
            pass
        self.child.close()
        if self.child.exitstatus is not None:
            return self.child.exitstatus
        return -(self.child.signalstatus or 0)

    def _read(self, seconds: float = 0.1) -> bool:
        """Draw what has come; whether anything did."""
        try:
            self.stream.feed(self.child.read_nonblocking(65536, timeout=seconds))
        except (pexpect.TIMEOUT, pexpect.EOF):
            time.sleep(0.2 * seconds)
            return False
        return True
