"""Files and folders as they should be: plain ones are read, our own are private."""

import mmap
import os
from pathlib import Path


def is_regular(path: Path) -> bool:
    """Whether there is a plain file: a pipe or a device would never be read to its end."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # no file can have that name
        return False


def private_folder(path: Path) -> Path:
    """A folder, made with its parents if need be for the user alone, whatever the umask is.

    Those that are there stay as they are. Raises OSError.
    """
    missing = [path]
    while not missing[-1].exists() and missing[-1].parent != missing[-1]:
        missing.append(missing[-1].parent)
    for folder in reversed(missing):
        try:
            folder.mkdir(0o700)
            # a umask may have taken the user's own rights away
            os.chmod(folder, 0o700)
        except FileExistsError:
            if not folder.is_dir():
                raise
    return path


class MappedFile:
    """A file in memory: `data`, with as many bytes. Copy on write, for torch wants memory that
    could be written. Raises OSError, and ValueError for an empty file.
    """

    def __init__(self, path: Path):
        with path.open("rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def give_back(self, begin: int, size: int) -> None:
        """Let the system have the memory of bytes that were read and are not wanted soon."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        if begin + size > first:
            self.data.madvise(mmap.MADV_DONTNEED, first, begin + size - first)
