"""Ctrl-C while kvchat works: once asks it to stop, twice soon after each other breaks off."""

import signal
from time import monotonic
from types import FrameType

AGAIN_SECONDS = 2.0


class Interrupt:
    """A context in which Ctrl-C sets a flag; a second press within two seconds raises."""

    def __init__(self) -> None:
        self._pressed: float | None = None

    def asked(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._pressed is not None

    def __enter__(self) -> "Interrupt":
        self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _press(self, _signal: int, _frame: FrameType | None) -> None:
        now = monotonic()
        if self._pressed is not None and now - self._pressed < AGAIN_SECONDS:
            raise KeyboardInterrupt
        self._pressed = now
