"""`--log-file`: what kvchat says about its work, with the time; no questions and no answers."""

import logging
import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kvchat.errors import KvchatError
from kvchat.terminal.text import clean

LOG = logging.getLogger("kvchat")
LOG.addHandler(logging.NullHandler())
LOG.propagate = False


class LogFile(logging.FileHandler):
    """A file that takes lines until it fails: that is told once, to `tell`, and it ends there."""

    def __init__(self, path: Path):
        super().__init__(path, encoding="utf-8")
        self.tell: Callable[[str], object] = lambda text: print(f"kvchat: {text}", file=sys.stderr)

    def handleError(self, record: logging.LogRecord) -> None:
        """Called while an error is being handled that a line has caused."""
        error = sys.exc_info()[1]
        LOG.removeHandler(self)
        reason = getattr(error, "strerror", None) or str(error)
        self.tell(f"--log-file {clean(self.baseFilename)} cannot be written any more: {reason}")


def open_log(path: str) -> LogFile:
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
        handler = LogFile(file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise KvchatError(
            "input", f"--log-file {clean(path)} cannot be written: {reason}"
        ) from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    return handler
