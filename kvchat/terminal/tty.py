"""Keys that are typed while kvchat works: they wait for the next line and are not shown."""

import sys
import termios
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

_changed: list[tuple[int, list[Any]]] = []  # terminals, with the modes that they had


def somebody() -> bool:
    """Whether there is a person to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def unseen() -> AbstractContextManager[None]:
    """No echo of keys in this context, so that typing ahead does not mix with what is rendered.

    Each key waits as it was pressed: the terminal's own line editing would swallow Ctrl-D and
    Backspace before the prompt comes that they are meant for. Who reads a line in between shows it
    by itself.
    """
    return _lines(edited=False)


def seen() -> AbstractContextManager[None]:
    """The terminal as most programs expect it, for one that is started from within `unseen`."""
    return _lines(edited=True)


@contextmanager
def _lines(edited: bool) -> Iterator[None]:
    """Whether the terminal echoes keys and edits lines by itself; then as it was before."""
    terminal = _terminal()
    if terminal is None:
        yield
        return
    before, modes = termios.tcgetattr(terminal), termios.tcgetattr(terminal)
    if edited:
        modes[3] |= termios.ECHO | termios.ICANON
    else:
        modes[3] &= ~(termios.ECHO | termios.ICANON)
        modes[6][termios.VMIN], modes[6][termios.VTIME] = 1, 0
    termios.tcsetattr(terminal, termios.TCSANOW, modes)
    _changed.append((terminal, before))
    try:
        yield
    finally:
        _changed.pop()
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def restore() -> None:
    """The terminal as it was before all of this, for a process that ends at once."""
    if _changed:
        terminal, before = _changed[0]
        termios.tcsetattr(terminal, termios.TCSANOW, before)


def _terminal() -> int | None:
    """Where keys come from; stdin may have been the document."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return next((s.fileno() for s in streams if s is not None and s.isatty()), None)
