"""Documents that a program of the person's own turns into text: `[loaders]` of config.toml."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from kvchat.documents import plain
from kvchat.documents.section import Sections
from kvchat.errors import KvchatError
from kvchat.terminal.text import clean

SECONDS = 300


def load(name: str, file: Path, command: Sequence[str]) -> Sections:
    """What `command` writes to stdout, the file's path in place of `{}`; no shell is involved.

    A form feed ends a page. Raises KvchatError("input").
    """
    shown = clean(" ".join(command))
    arguments = [part.replace("{}", str(file.absolute())) for part in command]
    try:
        done = subprocess.run(
            arguments, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise KvchatError("input", f"{name}: {shown} took more than {SECONDS} s") from None
    except OSError as error:
        raise KvchatError(
            "input", f"{name}: {shown} cannot be run: {error.strerror}", "--loader text"
        ) from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["nothing"]
        raise KvchatError(
            "input", f"{name}: {shown} ended with {done.returncode} and said: {clean(said[-1])}"
        )
    found = plain.load(name, done.stdout, None)
    return Sections(found.parts, found.unit, Path(command[0]).name, found.notices)
