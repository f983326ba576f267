"""Saved chats: one JSONL file each, an event per line, written after every turn. Knows no model.

A process that dies leaves at most one torn line at the end, which is left out when reading.
"""

import fcntl
import json
import os
import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

from kvchat import __version__
from kvchat.chat.chatlog_events import require
from kvchat.errors import KvchatError
from kvchat.files import private_folder
from kvchat.terminal.text import clean, counted, first_line

SCHEMA = 1
NAME = re.compile(r"[\w][\w .+-]{0,79}")


@dataclass
class Saved:
    """A chat as its events tell it: the last document, method and settings, and the turns left."""

    path: Path
    chat: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    former: list[str] = field(default_factory=list)  # names of before
    document: dict[str, Any] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, Any]] = field(default_factory=list)
    whole: int = 0  # bytes up to the last line that is not torn

    @property
    def id(self) -> str:
        """What the file is called."""
        return self.path.stem

    @property
    def title(self) -> str:
        """Its name, or its id."""
        return self.name or self.id

    def apply(self, event: dict[str, Any]) -> None:
        """Take in one event; kinds that are not known are left out.

        Raises KeyError, TypeError or ValueError for one that is not as it was written.
        """
        kind = require(event)
        if kind == "chat":
            self.chat, self.name = event, event.get("name") or self.name
        elif kind in ("document", "method", "settings"):
            setattr(self, kind, event)
        elif kind == "name":
            self.former += [self.name] if self.name else []
            self.name = event["name"]
        elif kind in ("turn", "undo"):
            gone = event.get("replaces", 0) if kind == "turn" else event["count"]
            if gone > len(self.turns):
                raise ValueError(f"{gone} of {len(self.turns)} turns are taken back")
            self.turns = self.turns[: len(self.turns) - gone]
            self.turns += [event] if kind == "turn" else []


def folder() -> Path:
    """Where chats are saved."""
    return user_state_path("kvchat") / "sessions"


def read(path: Path) -> Saved:
    """The chat of a file. Raises KvchatError("session") if it is none."""
    saved = Saved(path)
    try:
        if not path.is_file():  # a pipe or a device would never answer
            raise KvchatError("session", f"{path} is no file")
        data = path.read_bytes()
    except OSError as error:
        raise KvchatError("session", f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            if not line.endswith(b"\n"):
                break  # torn: the process died while writing
            event = None
        try:
            saved.apply(event)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise KvchatError(
                "session", f"{path}, line {number} is damaged: {error}", f"look at {path}"
            ) from None
        saved.whole += len(line)
    if saved.chat.get("schema") != SCHEMA:
        raise KvchatError("session", f"{path} is not a chat of this version of kvchat")
    return saved


@dataclass(frozen=True)
class Damaged:
    """A file among the saved chats that cannot be read, and why."""

    path: Path
    problem: KvchatError


def listing() -> list[Saved | Damaged]:
    """All saved chats, the last used first, and files that cannot be read."""
    found: list[Saved | Damaged] = []
    for path in sorted(folder().glob("*.jsonl"), key=_used, reverse=True):
        try:
            found.append(read(path))
        except KvchatError as problem:
            found.append(Damaged(path, problem))
    return found


def chats() -> list[Saved]:
    """The saved chats that can be read, the last used first."""
    return [chat for chat in listing() if isinstance(chat, Saved)]


def named(name: str) -> Saved | None:
    """The chat of exactly this name; None if there is none.

    Raises KvchatError("session") if a damaged file may be it.
    """
    if exact := [chat for chat in chats() if chat.name == name]:
        return exact[0]
    _require_readable(name)
    return None


def _require_readable(name: str) -> None:
    """Raise the problem of a damaged file that begins as the chat of this name or id."""
    for each in listing():
        if isinstance(each, Damaged):
            try:
                with each.path.open("rb") as file:
                    its = json.loads(file.readline()).get("name")
            except (OSError, ValueError, AttributeError, RecursionError):
                its = None
            if its == name or each.path.stem.startswith(name):
                raise each.problem


def find(name: str | None, former: bool = False) -> Saved:
    """The chat of a name or of the beginning of an id; the last used one for None.

    With `former` also the one chat that had the name before. Raises KvchatError("session").
    """
    if name is not None and name.endswith(".jsonl") and Path(name).is_file():
        return read(Path(name).absolute())
    everything, readable = listing(), chats()
    if not everything:
        raise KvchatError("session", f"there is no saved chat in {folder()}", "kvchat FILE")
    if name is None:
        last = everything[0]
        if isinstance(last, Damaged):
            raise last.problem
        return last
    exact = [chat for chat in readable if name in (chat.name, chat.id)]
    found = exact or [chat for chat in readable if chat.id.startswith(name)]
    if former and not found:
        found = [chat for chat in readable if name in chat.former]
    if len(found) != 1 and not exact:
        _require_readable(name)
        close = get_close_matches(name, [chat.title for chat in readable], n=2)
        what = f"{len(found)} saved chats begin with" if found else "no saved chat is called"
        raise KvchatError(
            "session",
            f"{what} {clean(name)!r}",
            *(f"--resume {title!r}" for title in close),
            "kvchat sessions list",
        )
    return found[0]


def saved_day(chat: Saved) -> date | None:
    """The date that the template told the model in a chat; None if it told none."""
    day = chat.document.get("day")
    return date.fromisoformat(day) if day else None


def summary(chat: Saved | Damaged) -> str:
    """A line about a chat: name, turns, model, documents, last question; or what is damaged."""
    if isinstance(chat, Damaged):
        return f"{chat.path.stem} · damaged: {chat.problem.message}"
    names = ", ".join(str(file.get("name")) for file in chat.document.get("files", ()))
    turns = counted(len(chat.turns), "turn")
    asked = first_line(str(chat.turns[-1]["question"])) if chat.turns else ""
    parts = (chat.title, turns, str(chat.chat.get("model")), names or "no document", asked)
    return " · ".join(part for part in parts if part)


def remove(name: str) -> Saved:
    """Delete a chat. Raises KvchatError("session") if there is none, or if it is open."""
    saved = find(name)
    Record.of(saved.path).close()  # fails while another process has it
    try:
        saved.path.unlink(missing_ok=True)
    except OSError as error:
        raise KvchatError("session", f"{saved.path} stays: {error.strerror}") from None
    return saved


def new_path() -> Path:
    """A file for a new chat; nothing is written yet."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return folder() / f"{stamp}-{secrets.token_hex(2)}.jsonl"


def checked_name(name: str) -> str:
    """A name for a chat. Raises KvchatError("usage")."""
    if not NAME.fullmatch(name):
        raise KvchatError(
            "usage", f"{clean(name)!r} is not a name: letters, digits, spaces and . _ + -"
        )
    return name


def first_event(**about: Any) -> dict[str, Any]:
    """The event that a file begins with."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {"event": "chat", "schema": SCHEMA, "kvchat": __version__, "created": created, **about}


class Record:
    """A chat's file, open for appending and locked; private to the user.

    Raises OSError, and KvchatError("session") while another process has it.
    """

    def __init__(self, path: Path):
        private_folder(path.parent)
        self.path = path
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            if not isinstance(error, BlockingIOError):
                raise  # a file system without locks
            raise KvchatError(
                "session",
                f"{path.stem} is open in another kvchat",
                "end that one first",
                "a new chat: leave --continue and --resume out",
            ) from None

    @classmethod
    def of(cls, path: Path) -> "Record":
        """That of a chat that is there. Raises KvchatError("session")."""
        try:
            return cls(path)
        except OSError as error:
            raise KvchatError(
                "session", f"{path} cannot be written: {error.strerror}", f"chmod u+w {path}"
            ) from None

    def cut(self, size: int) -> None:
        """Drop what lies beyond `size` bytes: a torn line."""
        os.ftruncate(self._file, size)

    def append(self, *events: dict[str, Any]) -> None:
        """Write events, each a line, and hand them to the disk. Raises OSError."""
        lines = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)
        data = lines.encode("utf-8", "replace")
        before = os.fstat(self._file).st_size
        if before and os.pread(self._file, 1, before - 1) != b"\n":
            data = b"\n" + data  # somebody's editor left out the last line's end
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, before)  # a disk that is full must not leave half a line
            raise

    def close(self) -> None:
        """Give the file back."""
        os.close(self._file)


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
