"""Signals while kvchat works: Ctrl-C once asks it to stop, twice soon after each other breaks off;
SIGTERM and SIGHUP ask it to stop and to end after that, so that nothing is lost."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from time import monotonic
from types import FrameType

AGAIN_SECONDS = 2.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupt:
    """A context in which Ctrl-C sets a flag; a second press within two seconds raises.

    Contexts nest: an inner one is asked to stop when an outer one is, and hands on a signal that
    asks the process to end. So one around the whole chat leaves no moment in which a press would
    raise between a turn and its saving.
    """

    def __init__(self) -> None:
        self._pressed: float | None = None
        self._outer: Interrupt | None = None
        self._idle = self._shielded = False
        self._ended = 0

    def asked(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._pressed is not None or (self._outer is not None and self._outer.asked())

    def press(self) -> None:
        """Take a press: Ctrl-C as a signal, or as a key that was read."""
        now = monotonic()
        again = self._pressed is not None and soon_after(self._pressed)
        if not self._done() if self._idle else again and not self._shielded:
            self._pressed = None  # a third press is a first one
            raise KeyboardInterrupt
        self._pressed = now

    def forget(self, before: float | None = None) -> None:
        """The press was answered: go on. One that came after the time `before` stays."""
        if before is None or (self._pressed or 0.0) < before:
            self._pressed = None
        if self._outer is not None:
            self._outer.forget(before)

    def leave_if_told(self) -> None:
        """End the process if a signal asked for that: what had to be saved is saved."""
        if self._ended:
            sys.exit(128 + self._ended)
        if self._outer is not None:
            self._outer.leave_if_told()

    @contextmanager
    def idle(self, done: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Nothing can be lost in here: a signal that asks the process to end does so at once.

        A press raises at once, until `done` says that what is waited for is there. So does one
        that nobody has answered when it begins.
        """
        self._idle, self._done = True, done
        try:
            self.leave_if_told()
            if self._pressed is not None:
                self.press()
            yield
        finally:
            self._idle = False

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """What is done in here is done to its end: not even a second press breaks it off."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False

    def __enter__(self) -> "Interrupt":
        found = {number: signal.getsignal(number) for number in SIGNALS}
        # to end is not ours to take where whoever started us has us ignore it, as nohup does
        self._before = {
            n: how for n, how in found.items() if n == signal.SIGINT or how != signal.SIG_IGN
        }
        self._outer = present()
        for number in self._before:
            signal.signal(number, self._caught)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._ended and self._outer is not None:
            self._outer._end(self._ended)

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self.press()
        else:
            self._end(number)

    def _end(self, number: int) -> None:
        self._ended, self._pressed = number, monotonic()
        if self._idle:
            sys.exit(128 + number)


def soon_after(press: float) -> bool:
    """Whether a press now counts as the second of two; `press`: when the first was."""
    return monotonic() - press < AGAIN_SECONDS


def present() -> Interrupt | None:
    """The innermost context that is open."""
    owner = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
    return owner if isinstance(owner, Interrupt) else None


@contextmanager
def shielded() -> Iterator[None]:
    """`Interrupt.shielded` of whatever context is open."""
    with owner.shielded() if (owner := present()) else nullcontext():
        yield
