"""What every loader gives: sections of a document, each with a name and a text."""

from dataclasses import dataclass
from typing import NamedTuple

WHOLE = "files"


class Section(NamedTuple):
    """A page, a chapter or a whole file."""

    name: str
    text: str


@dataclass(frozen=True)
class Sections:
    """A document in parts; `unit` is what a part is called, in the plural: `WHOLE` for just one.

    `unread` are the indices of parts that are pictures of text, `gap` is what stands between two.
    """

    parts: tuple[Section, ...]
    unit: str
    encoding: str
    notices: tuple[str, ...] = ()
    unread: tuple[int, ...] = ()
    gap: str = "\n\n"
