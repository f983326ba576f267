"""HTML as text: headings, paragraphs, lists and tables; scripts and styles are left out."""

import codecs
import re

from kvchat.documents.plain import BOMS, decoded
from kvchat.documents.section import WHOLE, Section, Sections
from kvchat.documents.tags import tokens

SILENT = {"script", "style", "template", "noscript", "svg", "math", "head"}
BREAKS = {"br", "hr"}
BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "caption", "dd", "div", "dl", "dt",
    "figcaption", "figure", "footer", "form", "header", "main", "nav", "ol", "p", "pre",
    "section", "table", "tr", "ul",
}  # fmt: skip
HEADING = re.compile(r"h([1-6])")
CHARSET = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
# The encodings of the web, and what is meant by names of others; bytes that say in ASCII that they
# are UTF-16 are not.
AS = {"ascii": "cp1252", "iso8859-1": "cp1252", "gb2312": "gb18030", "shift_jis": "cp932",
      "euc_kr": "cp949"}  # fmt: skip
ENCODINGS = re.compile(
    r"utf-8|cp(125[0-8]|866|874|932|949)|iso8859-\d+|koi8-[ru]|mac-(roman|cyrillic)|gbk|gb18030|"
    "big5(hkscs)?|euc_jp|iso2022_jp"
)


def load(name: str, data: bytes, encoding: str | None) -> Sections:
    """The text of a page; its own charset is believed if none is given."""
    source, used, notices = decoded(name, data, encoding or declared(data))
    return Sections((Section(name, text_of(source)),), WHOLE, used, notices)


def declared(data: bytes) -> str | None:
    """The encoding that a page claims to be in, if browsers know it and no byte-order mark does.

    Python knows more: some decode in quadratic time, some are no encodings of text.
    """
    if data.startswith(tuple(mark for mark, _ in BOMS)):
        return None
    claim = CHARSET.search(data[:2048])
    try:
        known = codecs.lookup(claim[1].decode("ascii")).name if claim else ""
    except (LookupError, UnicodeError):
        return None
    known = AS.get(known, known)
    return known if ENCODINGS.fullmatch(known) else None


def text_of(source: str) -> str:
    """The readable text of HTML."""
    reader = _Reader()
    for token in tokens(source):
        if isinstance(token, str):
            reader.data(token)
            continue
        if token.opens:
            reader.begin(token.name)
        if token.closes or not token.opens:
            reader.end(token.name)
    return reader.text()


class _Reader:
    def __init__(self) -> None:
        self._parts: list[str] = []
        self._silent: list[str] = []
        self._pre = 0

    def begin(self, tag: str) -> None:
        if tag == "body":
            self._silent.clear()  # a head that was never closed ends here
        if tag in SILENT:
            self._silent.append(tag)
        if self._silent:
            return
        self._pre += tag == "pre"
        if tag in BREAKS:
            self._parts.append("\n")
        elif tag == "li":
            self._parts.append("\n- ")
        elif tag in ("td", "th"):
            self._parts.append(" \t")
        elif heading := HEADING.fullmatch(tag):
            self._parts.append(f"\n\n{'#' * int(heading[1])} ")
        elif tag in BLOCKS:
            self._parts.append("\n\n" if tag != "tr" else "\n")

    def end(self, tag: str) -> None:
        if self._silent:
            if tag == self._silent[-1]:
                self._silent.pop()
            return
        self._pre -= tag == "pre" and self._pre > 0
        if HEADING.fullmatch(tag) or (tag in BLOCKS and tag != "tr"):
            self._parts.append("\n\n")

    def data(self, data: str) -> None:
        if not self._silent:
            self._parts.append(data if self._pre else re.sub(r"[ \t\r\n\f]+", " ", data))

    def text(self) -> str:
        """What was read, with at most one empty line between blocks."""
        lines = (line.strip(" \t") for line in "".join(self._parts).split("\n"))
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).replace(" \t", "\t").strip()
