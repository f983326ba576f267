"""Reads document files as text. Knows no tokens and no model.

A format is a loader, `load(name, data, encoding) -> Sections`, and a line in `FORMATS`.
"""

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

from kvchat.documents import cleaning, program
from kvchat.documents.section import Section, Sections
from kvchat.errors import KvchatError
from kvchat.terminal.text import clean

SIZE_CAP = 200 * 10**6
STDIN = "-"
FORMATS = {
    "text": "kvchat.documents.plain",
    "html": "kvchat.documents.html",
    "epub": "kvchat.documents.epub",
    "docx": "kvchat.documents.docx",
    "pdf": "kvchat.documents.pdf",
}
SUFFIXES = {".html": "html", ".htm": "html", ".xhtml": "html"}
HTML = re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html)\b", re.I | re.S)
# First bytes of formats that are not documents, and what to do with them.
OTHERS = (
    (b"\x1f\x8b", "gzip-compressed", "gunzip -c {path} | kvchat -p …"),
    (b"GGUF", "a GGUF model", "--model takes a folder with safetensors"),
    (b"PK\x03\x04", "a zip archive that is neither epub nor docx", "unpack it"),
    (b"\xd0\xcf\x11\xe0", "an old Word file", "save it as docx or plain text"),
)


@dataclass(frozen=True)
class Place:
    """Where a page or chapter begins, in characters of the text."""

    name: str
    start: int


@dataclass(frozen=True)
class Document:
    """A file's text, how many bytes it had, and what a reader should be told about it."""

    name: str
    text: str
    size: int
    encoding: str
    notices: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()
    unit: str = "files"
    path: str = ""  # absolute; empty for standard input
    digest: str = ""  # sha256 of the file

    @property
    def title(self) -> str:
        """The name without its folder."""
        return Path(self.name).name or self.name


def read(
    path: str,
    encoding: str | None = None,
    pages: str | None = None,
    loader: str = "auto",
    commands: Mapping[str, Sequence[str]] | None = None,
    clean_pages: bool = False,
) -> Document:
    """The text of a file, or of standard input for `-`. Raises KvchatError("input").

    `commands` are programs of the person's own that read files, by suffix.
    """
    if path == STDIN:
        data = capped("stdin", sys.stdin.buffer)
        return decode("stdin", data, encoding, pages, loader, clean_pages=clean_pages)
    name = clean(path)
    try:
        file = Path(path).expanduser()
        if file.is_dir():
            raise KvchatError("input", f"{name} is a directory", f"--file {name}/FILE")
        with file.open("rb") as stream:
            data = capped(name, stream)
        own = (commands or {}).get(file.suffix.lower()) if loader == "auto" else None
        sections = program.load(name, file, own) if own else None
        return decode(
            name, data, encoding, pages, loader, str(file.resolve()), clean_pages, sections
        )
    except FileNotFoundError:
        close = _similar(file)
        raise KvchatError("input", f"{name} does not exist", *close) from None
    except OSError as error:
        raise KvchatError("input", f"{name} cannot be read: {error.strerror}") from None
    except RuntimeError as error:  # ~nobody
        raise KvchatError("input", f"{name} cannot be read: {error}") from None


def capped(name: str, stream: BinaryIO) -> bytes:
    """All of a stream, unless it is longer than `SIZE_CAP`: then KvchatError("input")."""
    data = stream.read(SIZE_CAP + 1)
    if len(data) > SIZE_CAP:
        raise KvchatError(
            "input",
            f"{name} has more than {SIZE_CAP:,} bytes, the most that is read",
            f"split -b {SIZE_CAP} {name}",
        )
    return data


def decode(
    name: str,
    data: bytes,
    encoding: str | None = None,
    pages: str | None = None,
    loader: str = "auto",
    path: str = "",
    clean_pages: bool = False,
    sections: Sections | None = None,
) -> Document:
    """The document that `data` holds, or that `sections` are where they were read already.

    Raises KvchatError("input") for what holds none.
    """
    if not data:
        raise KvchatError("input", f"{name} is empty (0 bytes)")
    if sections is None:
        sections = loaded(name, data, encoding, loader)
    if clean_pages:
        sections = cleaning.cleaned(name, sections)
    total = len(sections.parts)
    parts = chosen(name, sections, pages) if pages else sections.parts
    if not any(part.text.strip() for part in parts):
        raise KvchatError("input", f"{name} has {len(data):,} bytes and no text")
    notices = sections.notices
    if len(parts) < total:
        notices = (
            *notices,
            f"{name}: {len(parts):,} of {total:,} {sections.unit}, as --pages says",
        )
    text, places = "", []
    for part in parts:
        text += "\n\n" * bool(text)
        places.append(Place(part.name, len(text)))
        text += part.text.strip("\n") if total > 1 else part.text
    digest = hashlib.sha256(data).hexdigest()
    return Document(
        name,
        text,
        len(data),
        sections.encoding,
        notices,
        tuple(places),
        sections.unit,
        path,
        digest,
    )


def loaded(name: str, data: bytes, encoding: str | None, loader: str) -> Sections:
    """The parts that a loader finds, `auto` or one of `FORMATS`. Raises KvchatError."""
    kind = kind_of(name, data) if loader == "auto" else loader
    if kind not in FORMATS:
        raise KvchatError("usage", f"no loader {clean(kind)!r}", f"--loader {'|'.join(FORMATS)}")
    return import_module(FORMATS[kind]).load(name, data, encoding)


def kind_of(name: str, data: bytes) -> str:
    """The loader for a file: by its first bytes, then by its name.

    Raises KvchatError("input") for formats that are no documents.
    """
    if data.startswith(b"%PDF"):
        return "pdf"
    if data.startswith(b"PK\x03\x04"):
        for kind, member in (("epub", b"META-INF/container.xml"), ("docx", b"word/document.xml")):
            if member in data:  # names stand uncompressed in a zip file
                return kind
    for magic, what, way in OTHERS:
        if data.startswith(magic):
            raise KvchatError("input", f"{name} is {what}, not text", way.format(path=name))
    if HTML.match(data[:4096]):
        return "html"
    return SUFFIXES.get(Path(name).suffix.lower(), "text")


def chosen(name: str, sections: Sections, pages: str) -> tuple[Section, ...]:
    """The parts that `pages` names: `3`, `1-40`, `1-3,7,90-`. Raises KvchatError."""
    total, picked = len(sections.parts), set()
    if total < 2:
        raise KvchatError("usage", f"{name} has no pages, so --pages cannot choose any")
    for piece in pages.split(","):
        match = re.fullmatch(r"\s*(\d+)?\s*(-)?\s*(\d+)?\s*", piece)
        if match is None or not (match[1] or match[3]):
            raise KvchatError("usage", f"{clean(piece)!r} is no range of pages", "--pages 1-40,60")
        first = int(match[1] or 1)
        last = int(match[3] or (total if match[2] else first))
        if not 1 <= first <= last <= total:
            raise KvchatError(
                "usage",
                f"--pages {clean(piece)}: {name} has {sections.unit} 1–{total:,}",
                f"--pages 1-{total}",
            )
        picked |= set(range(first, last + 1))
    return tuple(sections.parts[number - 1] for number in sorted(picked))


def _similar(file: Path) -> list[str]:
    names = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
    return [f"--file {file.parent / name}" for name in get_close_matches(file.name, names, n=2)]
