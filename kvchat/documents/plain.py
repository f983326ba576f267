"""Text files: encodings, and data that is no text."""

from kvchat.documents.section import Section, Sections
from kvchat.errors import KvchatError

BOMS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def load(name: str, data: bytes, encoding: str | None) -> Sections:
    """The text of `data`; a form feed ends a page."""
    text, used, notices = decoded(name, data, encoding)
    pages = text.split("\f")
    if len(pages) == 1:
        return Sections((Section(name, text),), "files", used, notices)
    parts = (Section(f"page {number}", page) for number, page in enumerate(pages, 1))
    return Sections(tuple(part for part in parts if part.text.strip()), "pages", used, notices)


def decoded(name: str, data: bytes, encoding: str | None) -> tuple[str, str, tuple[str, ...]]:
    """Text, encoding and notices: as given, a byte-order mark, UTF-8, else cp1252 with a notice.

    Raises KvchatError("input") for binary data, KvchatError("usage") for an unknown encoding.
    """
    marked = next((known for mark, known in BOMS if data.startswith(mark)), None)
    if encoding is None and marked is None and b"\x00" in data[:65536]:
        raise KvchatError(
            "input",
            f"{name} is binary: it has a zero byte at offset {data.index(0):,}",
            "--encoding utf-16-le  (if it is text without a byte-order mark)",
        )
    text, used, notices = _text(name, data, encoding or marked)
    return text.replace("\r\n", "\n"), used, notices


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
