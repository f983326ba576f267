"""Document files as text. A kind of document is a module and an entry in `FORMATS`."""

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import BinaryIO, NamedTuple

from kvchat.documents import cleaning, ocr, program
from kvchat.documents.ocr import UNTOLD, Pictures
from kvchat.documents.section import WHOLE, Section, Sections
from kvchat.errors import KvchatError
from kvchat.terminal.text import clean

SIZE_CAP = 200 * 10**6
STDIN = "-"


class Format(NamedTuple):
    """A module with `load(name, data, encoding) -> Sections`, and which files are for it.

    Either the data match `begins`, a regular expression, and have `contains` somewhere in them, or
    the name ends in one of `suffixes`.
    """

    module: str
    suffixes: tuple[str, ...] = ()
    begins: bytes | None = None
    contains: bytes = b""


# A comment ends at its first end: were that open, the comments before a text could be parted in
# 2^n ways.
HTML = rb"\s*(<\?xml[^>]*>\s*)?(<!--(?:(?!-->).)*-->\s*)*<(!doctype\s+html|html)\b"
FB2 = rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<FictionBook\b"
NUMBERED = re.compile(r"(?:page|slide) (\d+)")
ZIP = rb"PK\x03\x04"  # names stand uncompressed in a zip file
FORMATS = {
    "text": Format("kvchat.documents.plain"),
    "html": Format("kvchat.documents.html", (".html", ".htm", ".xhtml"), HTML),
    "epub": Format("kvchat.documents.epub", (), ZIP, b"META-INF/container.xml"),
    "docx": Format("kvchat.documents.docx", (), ZIP, b"word/document.xml"),
    "odf": Format("kvchat.documents.odf", (), ZIP, b"application/vnd.oasis.opendocument."),
    "pptx": Format("kvchat.documents.office", (), ZIP, b"ppt/presentation.xml"),
    "xlsx": Format("kvchat.documents.office", (), ZIP, b"xl/workbook.xml"),
    "pdf": Format("kvchat.documents.pdf", (), rb"%PDF"),
    "image": Format("kvchat.documents.image", (), rb"\x89PNG\r\n|\xff\xd8\xff|II\*\0|MM\0\*"),
    "rtf": Format("kvchat.documents.rtf", (), rb"\s*\{\\rtf"),
    "fb2": Format("kvchat.documents.fb2", (), FB2),
    "mail": Format("kvchat.documents.mail", (".eml",), rb"(Return-Path|Received|Delivered-To):\s"),
}
# First bytes of formats that are not documents, and what to do with them.
OTHERS = (
    (b"\x1f\x8b", "gzip-compressed", "gunzip -c {path} | kvchat -p …"),
    (b"GGUF", "a GGUF model", "-m {path}"),
    (b"PK\x03\x04", "a zip archive and no document", "unpack it"),
    (b"\xd0\xcf\x11\xe0", "an old Office file", "save it as docx, xlsx, pptx or plain text"),
)


class Place(NamedTuple):
    """Where a page or chapter begins, in characters of the text."""

    name: str
    start: int


@dataclass(frozen=True)
class Document:
    """A file's text, how many bytes it had, and notices for the person."""

    name: str
    text: str
    size: int
    encoding: str
    notices: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()
    unit: str = WHOLE  # what a place is called, in the plural
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
    pictures: Pictures = UNTOLD,
) -> Document:
    """The text of a file, or of standard input for `-`. Raises KvchatError("input").

    `commands` are programs of the person's own that read files, by suffix. `pages` chooses where
    there are any; see `require_pages`.
    """
    if path == STDIN:
        data = capped("stdin", sys.stdin.buffer)
        how = encoding, pages, loader, "", clean_pages
        return decode("stdin", data, *how, None, pictures)
    name = clean(path)
    try:
        file = Path(path).expanduser()
        if file.is_dir():
            raise KvchatError("input", f"{name} is a directory", f"--file {name}/FILE")
        with file.open("rb") as stream:
            data = capped(name, stream)
        own = (commands or {}).get(file.suffix.lower()) if loader == "auto" else None
        sections = program.load(name, file, own) if own else None
        how = encoding, pages, loader, str(file.resolve()), clean_pages
        return decode(name, data, *how, sections, pictures)
    except FileNotFoundError:
        close = _similar(file)
        raise KvchatError("input", f"{name} does not exist", *close) from None
    except OSError as error:
        raise KvchatError("input", f"{name} cannot be read: {error.strerror}") from None
    except (RuntimeError, ValueError) as error:  # ~nobody; a zero byte in a saved chat
        raise KvchatError("input", f"{name} cannot be read: {error}") from None


def capped(name: str, stream: BinaryIO) -> bytes:
    """All of a stream, unless it is longer than `SIZE_CAP`: then KvchatError("input")."""
    data = stream.read(SIZE_CAP + 1)
    if len(data) > SIZE_CAP:
        require_document(name, data)  # a model is refused as one, however long it is
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
    pictures: Pictures = UNTOLD,
) -> Document:
    """The document in `data`, or that `sections` are if they were extracted already.

    Raises KvchatError("input") where there is none.
    """
    if not data:
        raise KvchatError("input", f"{name} is empty (0 bytes)")
    if sections is None:
        sections = loaded(name, data, encoding, loader)
    total = len(sections.parts)
    wanted = list(range(total))
    if pages and sections.unit != WHOLE:
        wanted = chosen(name, sections, pages)
    sections = ocr.with_text(name, data, sections, wanted, pictures)
    if clean_pages:
        sections = cleaning.cleaned(name, sections)
    parts, notices = [sections.parts[number] for number in wanted], [*sections.notices]
    if pages and sections.unit == WHOLE:
        notices.append(f"{name} has no pages: all of it is read in spite of --pages")
    elif len(parts) < total:
        notices.append(f"{name}: {len(parts):,} of {total:,} {sections.unit}, as --pages says")
    if not any(part.text.strip() for part in parts):
        raise KvchatError("input", f"{name} has {len(data):,} bytes and no text")
    text, places = "", []
    for part in parts:
        text += sections.gap if text else ""
        places.append(Place(part.name, len(text)))
        text += part.text.strip("\n") if total > 1 and sections.gap else part.text
    return Document(
        name,
        text,
        size=len(data),
        encoding=sections.encoding,
        notices=tuple(notices),
        places=tuple(places),
        unit=sections.unit,
        path=path,
        digest=hashlib.sha256(data).hexdigest(),
    )


def loaded(name: str, data: bytes, encoding: str | None, loader: str) -> Sections:
    """The parts that a loader finds, `auto` or one of `FORMATS`. Raises KvchatError."""
    kind = kind_of(name, data) if loader == "auto" else loader
    if kind not in FORMATS:
        raise KvchatError("usage", f"no loader {clean(kind)!r}", f"--loader {'|'.join(FORMATS)}")
    found: Sections = import_module(FORMATS[kind].module).load(name, data, encoding)
    if kind == "text":
        return found
    parts = (Section(part.name, cleaning.as_letters(part.text)) for part in found.parts)
    return replace(found, parts=tuple(parts))


def kind_of(name: str, data: bytes) -> str:
    """The loader for a file: by its first bytes, then by its name.

    Raises KvchatError("input") for formats that are no documents.
    """
    for kind, known in FORMATS.items():
        begins = known.begins and re.match(known.begins, data[:4096], re.IGNORECASE | re.DOTALL)
        if begins and known.contains in data:
            return kind
    require_document(name, data)
    suffix = Path(name).suffix.lower()
    return next((kind for kind, known in FORMATS.items() if suffix in known.suffixes), "text")


def require_document(name: str, data: bytes) -> None:
    """Raise KvchatError("input") for what begins like a format that is no document."""
    for magic, what, way in OTHERS:
        if data.startswith(magic):
            raise KvchatError("input", f"{name} is {what}, not text", way.format(path=name))


def require_pages(files: Sequence[Document], pages: str | None) -> None:
    """Raise KvchatError("usage") if `--pages` can choose from none of the documents."""
    if pages and files and all(file.unit == WHOLE for file in files):
        names = ", ".join(file.name for file in files)
        raise KvchatError("usage", f"{names}: no pages or chapters that --pages could choose")


def chosen(name: str, sections: Sections, pages: str) -> list[int]:
    """The indices of the parts that `pages` names: `3`, `1-40`, `1-3,7,90-`. Raises KvchatError.

    Pages and slides go by their own numbers: those without text may be no parts.
    """
    named = [NUMBERED.fullmatch(part.name) for part in sections.parts]
    numbers = [int(found[1]) for found in named if found]
    if len(numbers) < len(named):
        numbers = list(range(1, len(named) + 1))
    total, picked = max(numbers), set()
    for piece in pages.split(","):
        match = re.fullmatch(r"(\d{1,9})?\s*(-)?\s*(\d{1,9})?", piece.strip())
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
    found = [place for place, number in enumerate(numbers) if number in picked]
    if not found:
        raise KvchatError("input", f"{name} has no text on {sections.unit} {clean(pages)}")
    return found


def _similar(file: Path) -> list[str]:
    try:
        names = [entry.name for entry in file.parent.iterdir() if entry.is_file()]
    except OSError:  # there is no such folder, or it cannot be listed
        return []
    return [f"--file {file.parent / name}" for name in get_close_matches(file.name, names, n=2)]
