"""A file that appears under its name whole, on disk, or not at all.

A process that dies leaves a temporary file beside it, which `sweep` takes away.
"""

import fcntl
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from kvchat.files import private_folder

MARK, TEMPORARY = ".kvchat-", ".tmp"  # how a temporary file of ours begins and ends
STALE = 60.0  # seconds without a write, before a temporary file may be taken for a dead one's
STEP = 2**24  # bytes written at once: between two of them a save can be given up


class NewFile:
    """A context whose writes become the file at `path` when it ends; an error leaves what was.

    Private to the user. Raises OSError, from any write and from the end.
    """

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> "NewFile":
        private_folder(self.path.parent)
        number, name = tempfile.mkstemp(TEMPORARY, MARK, self.path.parent)
        self._number, self.temporary = number, Path(name)  # mode 0600
        fcntl.flock(number, fcntl.LOCK_EX)
        return self

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`."""
        view = memoryview(data).cast("B")
        while view:
            view = view[os.write(self._number, view[:STEP]) :]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                os.fsync(self._number)
                os.replace(self.temporary, self.path)
                sync_folder(self.path.parent)
        finally:
            self.temporary.unlink(missing_ok=True)  # gone already if it has its name
            os.close(self._number)


def sync_folder(folder: Path) -> None:
    """Hand a folder's names to the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sweep(folder: Path) -> None:
    """Take away what processes that died have left."""
    for path in folder.glob(f"{MARK}*{TEMPORARY}"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime < STALE or not path.is_file():
                continue
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while somebody writes
                path.unlink()
