"""Files and folders as they should be: plain ones are read, our own are private."""

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
