"""Names of documents as people type them: a folder or a pattern stands for its files."""

import os
import re
from glob import glob, has_magic
from pathlib import Path

from kvchat.documents import FORMATS
from kvchat.errors import KvchatError
from kvchat.terminal.text import clean

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# What is read of a folder: its other files are as likely pictures or programs. A file that is named
# is read whatever it is called.
SUFFIXES = {
    *(".txt", ".md", ".markdown", ".rst", ".org", ".tex", ".log", ".csv", ".tsv"),
    *(".json", ".jsonl", ".yaml", ".yml", ".toml", ".xml", ".epub", ".docx", ".pdf"),
    *(suffix for form in FORMATS.values() for suffix in form.suffixes),
}
MOST = 500  # files of a folder or pattern


def expanded(path: str, suffixes: frozenset[str] = frozenset()) -> list[str]:
    """The files that a name stands for: itself, what matches it as a pattern, or what is in it.

    `suffixes` are read of folders beside the usual ones. Raises KvchatError("input").
    """
    name = clean(path)
    if ADDRESS.match(path):
        file = clean(path.rstrip("/").rpartition("/")[2]) or "page.html"
        raise KvchatError(
            "input",
            f"{name} is an address; kvchat reads files and downloads no documents",
            f"curl -L -o {file} {name}  and then  kvchat {file}",
        )
    try:
        place = Path(path).expanduser()
        if place.is_dir():
            readable = SUFFIXES | suffixes
            found = [
                each
                for each in sorted(place.iterdir())
                if each.suffix.lower() in readable and each.is_file() and each.name[0] != "."
            ]
            what = f"in {name} there is no document ({', '.join(sorted(readable))})"
            return _some([str(each) for each in found], what, f"-f '{name}/**/*.txt'")
        if has_magic(path) and not place.exists():
            matches = (Path(each) for each in sorted(glob(str(place), recursive=True)))
            if not (found := [each for each in matches if each.is_file()]):
                require_no_question(path)
            return _some([str(each) for each in found], f"nothing matches {name}")
        require_no_question(path)
    except (OSError, RuntimeError, ValueError) as error:  # forbidden, ~nobody, a zero byte
        raise KvchatError("input", f"{name} cannot be read: {error}") from None
    return [path]


def require_no_question(path: str) -> None:
    """Raise KvchatError("input") for what reads like a question and is no file."""
    asks = len(path.split()) > 1 and (path.rstrip().endswith("?") or not Path(path).suffix)
    if asks and not os.path.lexists(path):
        name = clean(path)
        raise KvchatError(
            "input", f"{name} does not exist", f'-p "{name}"  (if it is the question)'
        )


def _some(found: list[str], otherwise: str, *ways: str) -> list[str]:
    if not found:
        raise KvchatError("input", otherwise, *ways)
    if len(found) > MOST:
        raise KvchatError(
            "input", f"{len(found):,} files are more than {MOST:,}", "a narrower pattern"
        )
    return found
