"""Standard output and standard error on devices that fail, as a disk that is full.

What was asked for and cannot be written is an error; a notice that cannot be written is lost, and
the answer is not.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from kvchat.errors import KvchatError


class Output(io.TextIOWrapper):
    """Standard output: a write that fails raises KvchatError("input"), a closed pipe its own.

    Errors are caught above the buffer: whatever a signal raises in between, no byte is lost or
    written twice.
    """

    def write(self, text: str, /) -> int:
        """Write a text."""
        with _named():
            return super().write(text)

    def flush(self) -> None:
        """Hand on what was written."""
        with _named():
            super().flush()


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise KvchatError(
            "input",
            f"standard output cannot be written: {error.strerror}",
            "free space, or send it somewhere else",
        ) from None


class Notices(io.TextIOWrapper):
    """Standard error: once a device takes no more the rest is lost; a closed pipe raises."""

    def write(self, text: str, /) -> int:
        """Write a text."""
        with self._lost():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        with self._lost():
            super().flush()

    @contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError:
            silence(self)


def guard() -> None:
    """Put them in the place of the interpreter's own streams; others (of a test) stay."""
    for name, kind in (("stdout", Output), ("stderr", Notices)):
        stream = getattr(sys, name)
        if type(stream) is not io.TextIOWrapper:
            continue
        if type(getattr(stream.buffer, "raw", stream.buffer)) is not io.FileIO:
            continue
        with suppress(OSError):
            stream.flush()
        by_line = stream.line_buffering or stream.write_through
        buffer = io.BufferedWriter(io.FileIO(stream.fileno(), "w", closefd=False))
        new = kind(buffer, stream.encoding, "replace", line_buffering=by_line)
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def silence(*streams: TextIO) -> None:
    """Send the rest into nothing: the interpreter flushes once more when it ends."""
    for stream in streams:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
