"""HTML as text: headings, paragraphs, lists and tables; scripts and styles are left out."""

import codecs
import re
from html.parser import HTMLParser

from kvchat.documents.plain import decoded
from kvchat.documents.section import WHOLE, Section, Sections

SILENT = {"script", "style", "template", "noscript", "svg", "math", "head"}
BREAKS = {"br", "hr"}
BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "caption", "dd", "div", "dl", "dt",
    "figcaption", "figure", "footer", "form", "header", "main", "nav", "ol", "p", "pre",
    "section", "table", "tr", "ul",
}  # fmt: skip
HEADING = re.compile(r"h([1-6])")
CHARSET = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)


def load(name: str, data: bytes, encoding: str | None) -> Sections:
    """The text of a page; its own charset is believed if none is given."""
    source, used, notices = decoded(name, data, encoding or declared(data))
    return Sections((Section(name, text_of(source)),), WHOLE, used, notices)


def declared(data: bytes) -> str | None:
    """The charset that a page claims to be in, if there is such a one."""
    claim = CHARSET.search(data[:2048])
    try:
        return codecs.lookup(claim[1].decode("ascii")).name if claim else None
    except (LookupError, UnicodeError):
        return None


def text_of(source: str) -> str:
    """The readable text of HTML."""
    reader = _Reader()
    reader.feed(source)
    reader.close()
    return reader.text()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._silent: list[str] = []
        self._pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
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

    def handle_endtag(self, tag: str) -> None:
        if self._silent:
            if tag == self._silent[-1]:
                self._silent.pop()
            return
        self._pre -= tag == "pre" and self._pre > 0
        if HEADING.fullmatch(tag) or (tag in BLOCKS and tag != "tr"):
            self._parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self._parts.append(data if self._pre else re.sub(r"[ \t\r\n\f]+", " ", data))

    def text(self) -> str:
        """What was read, with at most one empty line between blocks."""
        lines = (line.strip(" \t") for line in "".join(self._parts).split("\n"))
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).replace(" \t", "\t").strip()
