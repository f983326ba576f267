"""Cached documents on disk: where they are, which there are, and how much they may take. Imports no
torch.
"""

import os
import re
import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from kvchat.engine.store import SUFFIX, Refused, header
from kvchat.engine.store.atomic import sweep
from kvchat.errors import KvchatError
from kvchat.terminal.text import clean, size

CAP = 20 * 2**30  # bytes that cached documents may take; the least recently used go first
NAME = re.compile(rf"[0-9a-f]{{32}}{re.escape(SUFFIX)}")  # a fingerprint
KINDS = ("kvchat reading", "kvchat archive")  # what our headers say
LEAVE = 5 * 2**30  # bytes that stay free on the disk


@dataclass(frozen=True)
class Entry:
    """A cached document: `about` is what was noted for the person, `used` its last use."""

    path: Path
    size: int
    used: float
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """What the file is called."""
        return self.path.stem

    @property
    def title(self) -> str:
        """The documents' names, and which part it is of a document that several devices hold."""
        names = ", ".join(map(str, self.about.get("documents", ()))) or "?"
        return f"{names} ({part})" if (part := self.about.get("part")) else names


def folder(given: str | None = None) -> Path:
    """Where documents are cached: `--prompt-cache-dir`, or the user's cache folder."""
    return Path(given).expanduser() if given else user_cache_path("kvchat") / "kv"


def place(root: Path, fingerprint: str) -> Path:
    """The file of a document."""
    return root / f"{fingerprint}{SUFFIX}"


def entries(root: Path) -> list[Entry]:
    """All cached documents, the last used first: files with our name and our header.

    Whatever else lies in the folder is not ours: it is neither counted nor removed.
    """
    found = []
    for path in root.glob(f"*{SUFFIX}"):
        with suppress(OSError, Refused):  # gone in the meantime, or not ours
            if NAME.fullmatch(path.name) and path.is_file():
                head, there = header.read(path), path.stat()
                if head.metadata.get("kind") in KINDS:
                    found.append(Entry(path, there.st_size, there.st_mtime, head.about))
    return sorted(found, key=lambda entry: -entry.used)


def find(root: Path, name: str) -> Entry:
    """The document whose id begins with `name`, or of a document of that name.

    Raises KvchatError("session") if there is none or more than one.
    """
    there = entries(root)
    found = [e for e in there if e.id.startswith(name) or e.title == name] if name else []
    if len(found) != 1:
        what = f"{len(found)} cached documents are" if found else "no cached document is"
        raise KvchatError(
            "session",
            f"{what} called {clean(name)!r}",
            *(f"kvchat cache show {entry.id[:8]}" for entry in found[:5]),
            "kvchat cache list",
        )
    return found[0]


def remove(entry: Entry) -> None:
    """Delete one; who has it mapped keeps it. Raises KvchatError("session")."""
    try:
        entry.path.unlink(missing_ok=True)
    except OSError as error:
        raise KvchatError("session", f"{entry.path} stays: {error.strerror}") from None


def prune(root: Path, most: int, keep: Collection[Path] = ()) -> list[Entry]:
    """Delete the least recently used ones until the rest takes at most `most` bytes.

    Those of `keep` stay. Left-overs of processes that died go too.
    """
    sweep(root)
    there, gone = entries(root), []
    total = sum(entry.size for entry in there)
    for entry in reversed(there):
        if total <= most:
            break
        if entry.path not in keep:
            remove(entry)
            gone.append(entry)
            total -= entry.size
    return gone


def use(path: Path) -> None:
    """Note that one was used now."""
    with suppress(OSError):
        os.utime(path)


def require_space(root: Path, needed: int) -> None:
    """Raise OSError if saving `needed` bytes would leave too little of the disk."""
    there = root
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free - needed < LEAVE:
        raise OSError(0, f"{size(free)} are free on the disk, and {size(LEAVE)} stay free")


def differences(root: Path, parts: dict[str, str], same: Sequence[str]) -> list[str]:
    """How the last used one that agrees in the parts `same` differs; empty if there is none."""
    for entry in entries(root):
        its = entry.about.get("parts", {})
        if its and its.get("document") == parts["document"] and its["kvchat"] != parts["kvchat"]:
            return ["kvchat"]  # another version may write down everything else in another way
        if its and all(its.get(name) == parts.get(name) for name in same):
            return [name for name in its | parts if its.get(name) != parts.get(name)]
    return []
