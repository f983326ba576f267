"""Signals while kvchat works: Ctrl-C once asks it to stop, twice soon after each other breaks off;
SIGTERM and SIGHUP ask it to stop and to end after that, so that nothing is lost."""

import signal
from time import monotonic
from types import FrameType

AGAIN_SECONDS = 2.0


class Interrupt:
    """A context in which Ctrl-C sets a flag; a second press within two seconds raises.

    `ended` is the number of the signal that asks the process to end, or 0.
    """

    def __init__(self) -> None:
        self._pressed: float | None = None
        self.ended = 0

    def asked(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._pressed is not None

    def forget(self) -> None:
        """The press was answered: go on."""
        self._pressed = None

    def __enter__(self) -> "Interrupt":
        self._before = {
            number: signal.signal(number, handler)
            for number, handler in (
                (signal.SIGINT, self._press),
                (signal.SIGTERM, self._end),
                (signal.SIGHUP, self._end),
            )
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _press(self, _signal: int, _frame: FrameType | None) -> None:
        now = monotonic()
        if self._pressed is not None and now - self._pressed < AGAIN_SECONDS:
            raise KeyboardInterrupt
        self._pressed = now

    def _end(self, number: int, _frame: FrameType | None) -> None:
        self.ended, self._pressed = number, monotonic()
