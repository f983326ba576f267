"""Text files: encodings, and data that is no text."""

import re

from charset_normalizer import from_bytes

from kvchat.documents.section import WHOLE, Section, Sections
from kvchat.errors import KvchatError

BOMS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
# Encodings of texts whose letters are mostly not ASCII; those of western Europe are read as cp1252.
JAPANESE = ("cp932", "euc_jp")
FOREIGN = ("cp1251", "koi8_r", "cp1253", "cp1255", "cp1256", "cp874", "gb18030", "big5", "cp949")
SAMPLE = 2**18  # bytes that an encoding is guessed from
SURROGATE = re.compile("[\ud800-\udfff]")  # halves of a character, which some encodings let pass
HIRAGANA = re.compile("[ぁ-ゖ]")


def load(name: str, data: bytes, encoding: str | None) -> Sections:
    """The text of `data`; a form feed ends a page."""
    text, used, notices = decoded(name, data, encoding)
    pages = text.split("\f")
    if len(pages) == 1:
        return Sections((Section(name, text),), WHOLE, used, notices)
    parts = (Section(f"page {number}", page) for number, page in enumerate(pages, 1))
    return Sections(tuple(part for part in parts if part.text.strip()), "pages", used, notices)


def decoded(name: str, data: bytes, encoding: str | None) -> tuple[str, str, tuple[str, ...]]:
    """Text, encoding and notices: as given, a byte-order mark, UTF-8, else a guess with a notice.

    Raises KvchatError("input") for binary data, KvchatError("usage") for an unknown encoding.
    """
    marked = next((known for mark, known in BOMS if data.startswith(mark)), None)
    if encoding is None and marked is None and b"\x00" in data[:65536]:
        raise KvchatError(
            "input",
            f"{name} is binary: it has a zero byte at offset {data.index(0):,}",
            "--encoding utf-16-le  (if it is text without a byte-order mark)",
        )
    used, notices = encoding or marked or "utf-8", []
    try:
        text = data.decode(used)
    except UnicodeDecodeError as error:
        at = f"first at offset {error.start:,}"
        if used == "utf-8" and encoding is None:
            used = guessed(name, data)
            notices += [
                f"{name}: not utf-8 ({at}), read as {used}; --encoding NAME reads it otherwise"
            ]
        text = data.decode(used, errors="replace")
        if bad := text.count("\ufffd"):
            notices += [f"{name}: {bad:,} characters were not {used} and were replaced ({at})"]
    except (LookupError, UnicodeError):
        raise KvchatError(
            "usage", f"{used!r} is not an encoding", "--encoding utf-8", "--encoding cp1252"
        ) from None
    text = SURROGATE.sub("\ufffd", text.removeprefix("\ufeff"))
    return text.replace("\r\n", "\n").replace("\r", "\n"), used, tuple(notices)


def guessed(name: str, data: bytes) -> str:
    """The likely encoding of bytes that are not UTF-8. Raises KvchatError("input") for none.

    A text with more ASCII letters than others is a western one.
    """
    sample = data
    if len(data) > SAMPLE:  # no character is cut at the end of a line
        sample = data[:SAMPLE].rpartition(b"\n")[0] or data[:SAMPLE]
    foreign = len(re.findall(rb"[\x80-\xff]", sample))
    if foreign <= len(re.findall(rb"[A-Za-z]", sample)):
        return "cp1252"
    for japanese in JAPANESE:  # a short one looks Korean to the library
        text = sample.decode(japanese, errors="ignore")
        if len(HIRAGANA.findall(text)) > foreign / 10:
            return japanese
    found = from_bytes(sample, cp_isolation=[*FOREIGN, *JAPANESE]).best()
    if found is None:
        raise KvchatError(
            "input",
            f"{name} is neither UTF-8 nor in an encoding that is recognised",
            "--encoding NAME",
        )
    return found.encoding
