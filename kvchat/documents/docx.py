"""DOCX: paragraphs, headings and table cells of the main text."""

import re
from xml.etree.ElementTree import Element

from kvchat.documents.archive import Archive
from kvchat.documents.paged import FORCED, LAID, fronted, paged
from kvchat.documents.section import Sections
from kvchat.errors import KvchatError

MAIN = "word/document.xml"
W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
HEADING = re.compile(r"Heading([1-9])")  # Word has nine levels
BREAKS = {f"{W}tab": "\t", f"{W}br": "\n", f"{W}cr": "\n", f"{W}lastRenderedPageBreak": LAID}


def load(name: str, data: bytes, encoding: str | None) -> Sections:
    """The text of a word document, in pages where it tells; deleted text of tracked changes is left
    out."""
    body = Archive(name, data).xml(MAIN).find(f"{W}body")
    if body is None:
        raise KvchatError("input", f"{name} has no text body", "save it as plain text")
    text = "\n\n".join(part for part in map(_block, body) if part)
    return paged(name, text, "docx")


def _block(element: Element) -> str:
    if element.tag == f"{W}tbl":
        rows = element.iterfind(f"{W}tr")
        return "\n".join("\t".join(_cell(c) for c in row.iterfind(f"{W}tc")) for row in rows)
    if element.tag == f"{W}p":
        return _paragraph(element)
    # content controls and the like hold blocks of their own
    return "\n\n".join(part for part in map(_block, element) if part)


def _cell(cell: Element) -> str:
    return " ".join(part for part in map(_block, cell) if part)


def _paragraph(paragraph: Element) -> str:
    pieces = []
    for node in paragraph.iter():
        if node.tag == f"{W}t":
            pieces.append(node.text or "")
        elif node.tag == f"{W}br" and node.get(f"{W}type") == "page":
            pieces.append(FORCED)
        elif node.tag in BREAKS:
            pieces.append(BREAKS[node.tag])
    text = "".join(pieces).strip()
    if _is_on(paragraph.find(f"{W}pPr/{W}pageBreakBefore")):
        text = FORCED + text
    style = paragraph.find(f"{W}pPr/{W}pStyle")
    kind = style.get(f"{W}val", "") if style is not None else ""
    if text and (heading := HEADING.fullmatch(kind)):
        return fronted(text, f"{'#' * min(int(heading[1]), 6)} ")
    listed = paragraph.find(f"{W}pPr/{W}numPr") is not None
    return fronted(text, "- ") if text and listed else text


def _is_on(element: Element | None) -> bool:
    return element is not None and element.get(f"{W}val") not in ("0", "false", "off")
