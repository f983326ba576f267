"""Errors that a user can act on: what happened with numbers, ways out, and the exit code."""

from typing import Any

EXIT_CODES = {
    "unexpected": 1,
    "usage": 2,
    "model": 3,
    "input": 4,
    "too_long": 5,
    "memory": 6,
    "device": 7,
    "session": 8,
}


LONGEST = 1000  # characters of a message: names in foreign files can be of any length


class KvchatError(Exception):
    """Something the user can cause and mend.

    `code` is a key of `EXIT_CODES`; `tries` are ways out, each enough by itself; `details` are
    plain numbers and strings for `--json`. A message that is very long loses its middle.
    """

    def __init__(self, code: str, message: str, *tries: str, **details: Any):
        assert code in EXIT_CODES, f"unknown error code {code!r}"
        if len(message) > LONGEST:
            message = f"{message[: LONGEST // 2]} … {message[-LONGEST // 2 :]}"
        super().__init__(message)
        self.code = code
        self.message = message
        self.tries = tries
        self.details = details

    @property
    def exit_code(self) -> int:
        """Process exit status of this error."""
        return EXIT_CODES[self.code]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    # what torch's CPU allocator raises is a plain RuntimeError
    text = str(error).lower()
    return isinstance(error, RuntimeError) and "memory" in text and "alloc" in text
