"""Lines of a JSONL file, and what must be in them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from kvchat.errors import KvchatError
from kvchat.terminal.text import clean


@dataclass(frozen=True)
class Line:
    """The object of one line. What is missing is an error with the file and the line."""

    path: Path
    number: int
    fields: dict[str, Any]

    def text(self, name: str, empty: bool = False) -> str:
        """A string, by default not an empty one."""
        value = self.fields.get(name)
        if not _is_text(value, empty):
            raise self._wrong(name, "a text" if empty else "a text that is not empty")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings without empty ones; there must be one."""
        value = self.fields.get(name)
        if not isinstance(value, list) or not value or not all(map(_is_text, value)):
            raise self._wrong(name, "a list of texts that are not empty")
        return tuple(value)

    def error(self, what: str, *tries: str) -> KvchatError:
        """An error about this line."""
        return KvchatError("input", f"{clean(str(self.path))}, line {self.number}: {what}", *tries)

    def _wrong(self, name: str, wanted: str) -> KvchatError:
        return self.error(f"'{name}' is {'not' if name in self.fields else 'missing:'} {wanted}")


def lines(path: Path) -> Iterator[Line]:
    """The lines of a JSONL file; empty ones are passed over. Raises KvchatError("input")."""
    for number, text in enumerate(content(path).split("\n"), 1):
        if text.strip():
            yield parsed(path, text, number)


def parsed(path: Path, text: str, number: int = 1) -> Line:
    """The object that begins on a line. Raises KvchatError("input")."""
    where = f"{clean(str(path))}, line {number}"
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{clean(str(path))}, line {number + error.lineno - 1}, column {error.colno}"
        raise KvchatError("input", f"{where}: no JSON ({error.msg})") from None
    except (ValueError, RecursionError):  # numbers of thousands of digits, lists in lists in lists
        raise KvchatError("input", f"{where}: its JSON is too large to be parsed") from None
    if not isinstance(value, dict):
        raise KvchatError("input", f"{where}: no JSON object")
    return Line(path, number, value)


def content(path: Path) -> str:
    """The text of a file. Raises KvchatError("input")."""
    name = clean(str(path))
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise KvchatError("input", f"{name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise KvchatError("input", f"{name}: no UTF-8 at byte {error.start:,}") from None


def _is_text(item: Any, empty: bool = False) -> TypeGuard[str]:
    """Whether it is a string, of whole characters: JSON can hold halves of some."""
    if not isinstance(item, str) or any("\ud800" <= char <= "\udfff" for char in item):
        return False
    return empty or bool(item.strip())
