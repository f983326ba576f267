"""Memory of the process that was freed and not given back."""

import ctypes
from contextlib import suppress


def trim() -> None:
    """Give back RAM that was freed and not returned to the system, where malloc can (glibc)."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
