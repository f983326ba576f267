"""Reads document files as text. Knows no tokens and no model."""

import sys
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO

from kvchat.app.text import clean
from kvchat.errors import KvchatError

SIZE_CAP = 200 * 10**6
STDIN = "-"
BOMS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
# First bytes of formats that are not text, and what to do with them.
FORMATS = (
    (b"%PDF", "a PDF", "pdftotext -layout {path} - | kvchat -p …"),
    (b"PK\x03\x04", "a zip archive (docx, epub, …)", "save it as plain text"),
    (b"\x1f\x8b", "gzip-compressed", "gunzip -c {path} | kvchat -p …"),
    (b"GGUF", "a GGUF model", "--model takes a folder with safetensors"),
)


@dataclass(frozen=True)
class Document:
    """A file's text, how many bytes it had, and what a reader should be told about it."""

    name: str
    text: str
    size: int
    encoding: str
    notices: tuple[str, ...] = ()


def read(path: str, encoding: str | None = None) -> Document:
    """The text of a file, or of standard input for `-`. Raises KvchatError("input")."""
    if path == STDIN:
        return decode("stdin", capped("stdin", sys.stdin.buffer), encoding)
    name = clean(path)
    try:
        file = Path(path).expanduser()
        if file.is_dir():
            raise KvchatError("input", f"{name} is a directory", f"--file {name}/FILE")
        with file.open("rb") as stream:
            return decode(name, capped(name, stream), encoding)
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


def decode(name: str, data: bytes, encoding: str | None = None) -> Document:
    """Text of `data`: the given encoding, a byte-order mark, UTF-8, else cp1252 with a notice.

    Raises KvchatError("input") for empty and for binary data.
    """
    if not data:
        raise KvchatError("input", f"{name} is empty (0 bytes)")
    for magic, what, way in FORMATS:
        if data.startswith(magic):
            raise KvchatError("input", f"{name} is {what}, not text", way.format(path=name))
    marked = next((known for mark, known in BOMS if data.startswith(mark)), None)
    if encoding is None and marked is None and b"\x00" in data[:65536]:
        raise KvchatError(
            "input",
            f"{name} is binary: it has a zero byte at offset {data.index(0):,}",
            "--encoding utf-16-le  (if it is text without a byte-order mark)",
        )
    text, used, notices = _text(name, data, encoding or marked)
    if not text.strip():
        raise KvchatError("input", f"{name} has {len(data):,} bytes and no text")
    return Document(name, text.replace("\r\n", "\n"), len(data), used, notices)


def joined(documents: list[Document]) -> str:
    """One text of several documents, each under its name; a single one stays as it is."""
    if len(documents) == 1:
        return documents[0].text
    return "\n\n".join(f"# {document.name}\n\n{document.text}" for document in documents)


def _text(name: str, data: bytes, encoding: str | None) -> tuple[str, str, tuple[str, ...]]:
    try:
        return data.decode(encoding or "utf-8"), encoding or "utf-8", ()
    except UnicodeDecodeError as error:
        return _replaced(name, data, encoding, error.start)
    except (LookupError, UnicodeError):
        raise KvchatError(
            "usage", f"{encoding!r} is not an encoding", "--encoding utf-8", "--encoding cp1252"
        ) from None


def _replaced(
    name: str, data: bytes, encoding: str | None, offset: int
) -> tuple[str, str, tuple[str, ...]]:
    """Text of bytes that do not decode: by the given encoding with gaps, else by cp1252."""
    at = f"first at offset {offset:,}"
    if encoding is not None:
        text = data.decode(encoding, errors="replace")
        bad = text.count("\ufffd")
        note = f"{name}: {bad:,} characters were not {encoding} and were replaced ({at})"
        return text, encoding, (f"{note}; --encoding NAME reads it otherwise",)
    text = data.decode("cp1252", errors="replace")
    note = f"{name}: not utf-8 ({at}), read as cp1252; --encoding NAME reads it otherwise"
    if bad := text.count("\ufffd"):
        note += f"; {bad:,} bytes were replaced"
    return text, "cp1252", (note,)


def _similar(file: Path) -> list[str]:
    names = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
    return [f"--file {file.parent / name}" for name in get_close_matches(file.name, names, n=2)]
