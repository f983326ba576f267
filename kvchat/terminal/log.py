"""`--log-file`: what kvchat says about its work, with the time; no questions and no answers."""

import logging
import os
import stat
from contextlib import suppress
from pathlib import Path

from kvchat.errors import KvchatError
from kvchat.terminal.text import clean

LOG = logging.getLogger("kvchat")
LOG.addHandler(logging.NullHandler())
LOG.propagate = False


def open_log(path: str) -> None:
    """Append to a file that only the user can read. Raises KvchatError("input")."""
    file = Path(path).expanduser()
    try:
        number = os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        try:
            if stat.S_ISREG(os.fstat(number).st_mode):  # one that is there already may be for all
                with suppress(PermissionError):  # another user's
                    os.fchmod(number, 0o600)
        finally:
            os.close(number)
        handler = logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise KvchatError(
            "input", f"--log-file {clean(path)} cannot be written: {error.strerror}"
        ) from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
