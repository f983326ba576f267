"""RTF: its text, paragraphs and table cells; fonts, styles, pictures and fields are left out."""

import codecs
import re

from kvchat.documents.section import WHOLE, Section, Sections
from kvchat.errors import KvchatError

# A group's brace, a control word with its number and one space, an escaped byte, a control symbol,
# or text. Every alternative begins with another character, and none can match nothing.
TOKEN = re.compile(
    rb"([{}])|\\([a-zA-Z]{1,32})(-?\d{1,10})?[ ]?|"
    rb"\\'([0-9a-fA-F]{2})|\\([^a-zA-Z'])|([^\\{}\r\n]+)",
    re.DOTALL,
)
SILENT = {
    b"fonttbl", b"colortbl", b"stylesheet", b"info", b"pict", b"object", b"fldinst", b"header",
    b"headerf", b"headerl", b"headerr", b"footer", b"footerf", b"footerl", b"footerr", b"themedata",
    b"listtable", b"listoverridetable", b"generator", b"xmlnstbl", b"datastore", b"latentstyles",
}  # fmt: skip
WORDS = {
    b"par": "\n\n", b"sect": "\n\n", b"page": "\n\n", b"line": "\n", b"row": "\n", b"tab": "\t",
    b"cell": "\t", b"emdash": "\u2014", b"endash": "\u2013", b"bullet": "\u2022",
    b"lquote": "\u2018", b"rquote": "\u2019", b"ldblquote": "\u201c", b"rdblquote": "\u201d",
    b"emspace": " ", b"enspace": " ",
}  # fmt: skip
SYMBOLS = {
    b"~": "\u00a0", b"_": "-", b"\\": "\\", b"{": "{", b"}": "}", b"\n": "\n\n", b"\r": "\n\n",
}  # fmt: skip
DEPTH_CAP = 10_000  # groups inside each other


def load(name: str, data: bytes, encoding: str | None) -> Sections:
    """The text of the document; `encoding` is that of its bytes if it does not say so."""
    page, silent, skip, depth = encoding or "cp1252", 0, 0, 0
    groups: list[int] = []  # characters in place of one of Unicode, outside of each group
    fallback = 1
    parts: list[str] = []
    pending = bytearray()

    def put(text: str) -> None:
        if pending:
            parts.append(pending.decode(page, "replace"))
            pending.clear()
        parts.append(text)

    at = 0
    while found := TOKEN.search(data, at):
        at = found.end()
        brace, word, number, byte, symbol, plain = found.groups()
        if brace == b"{":
            depth += 1
            if depth > DEPTH_CAP:
                raise KvchatError("input", f"{name} is damaged: {depth:,} groups in each other")
            groups.append(fallback)
        elif brace:
            silent, skip = (0 if silent >= depth else silent), 0
            depth = max(depth - 1, 0)
            fallback = groups.pop() if groups else 1
        elif word in SILENT or symbol == b"*":  # a group that not every reader has to know
            silent = silent or max(depth, 1)
        elif word == b"ansicpg" and encoding is None:
            page = _page(number)
        elif word == b"bin":  # bytes that are no text, whatever they look like
            at += max(int(number or 0), 0)
        elif word == b"uc":
            fallback = min(int(number or 1), 16)
        elif silent:
            continue
        elif word == b"u":
            code = int(number or 0) % 65536
            put(chr(code))
            skip = fallback
        elif word in WORDS:
            put(WORDS[word])
        elif symbol in SYMBOLS:
            put(SYMBOLS[symbol])
        elif byte and skip:
            skip -= 1
        elif byte:
            pending += bytes.fromhex(byte.decode())
        elif plain:
            pending += plain[skip:]
            skip = max(skip - len(plain), 0)
    put("")
    text = "".join(parts).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    lines = (line.strip(" \t\0") for line in text.split("\n"))
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    return Sections((Section(name, text),), WHOLE, "rtf")


def _page(number: bytes | None) -> str:
    """The code page of that number, if it is one of text."""
    known = f"cp{int(number or 1252)}"
    try:
        codecs.lookup(known)
    except LookupError:
        return "cp1252"
    return known
