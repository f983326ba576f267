"""OpenDocument: paragraphs, headings, lists and tables of a text; sheets and slides too."""

from xml.etree.ElementTree import Element, SubElement

from kvchat.documents.archive import Archive
from kvchat.documents.paged import FORCED, LAID, fronted, paged
from kvchat.documents.section import Section, Sections
from kvchat.documents.xml import local
from kvchat.errors import KvchatError

MAIN = "content.xml"
# Deleted text, remarks, what is drawn or computed, and texts that stand elsewhere too.
SILENT = {"tracked-changes", "annotation", "forms", "sequence-decls", "notes", "binary-data"}
BREAKS = {"tab": "\t", "line-break": "\n", "soft-page-break": LAID}
SPACES = 100  # the most that one element can stand for
REPEATED, COPIED = 1000, 10**5  # the same of cells and rows, and characters of their copies
PAGES = {"table": "sheets", "page": "slides"}


def load(name: str, data: bytes, encoding: str | None) -> Sections:
    """The text of a document, in pages where it tells; sheets and slides are its parts.

    Raises KvchatError("input").
    """
    root = Archive(name, data).xml(MAIN)
    body = root.find("{*}body")
    if body is None or not len(body):
        raise KvchatError("input", f"{name} has no text body", "save it as plain text")
    kind = body[0]
    if local(kind) in ("spreadsheet", "presentation"):
        pages = [each for each in kind if local(each) in PAGES]
        parts = tuple(
            Section(_name(page) or f"{n}", text)
            for n, page in enumerate(pages, 1)
            if (text := _block(page))
        )
        if parts:
            return Sections(parts, PAGES[local(pages[0])], "odf")
    _mark_breaks(root, kind)
    return paged(name, _blocks(kind), "odf")


def _mark_breaks(root: Element, text: Element) -> None:
    """Write into paragraphs that their style says begin or end a page."""
    before, after = set[str](), set[str]()
    for style in root.iterfind("{*}automatic-styles/{*}style"):
        for inner in style.iterfind("{*}paragraph-properties"):
            for end, names in (("}break-before", before), ("}break-after", after)):
                if _attribute(inner, end) == "page":
                    names.add(_attribute(style, "}name"))
    for element in text.iter() if before or after else ():
        style_name = _attribute(element, "}style-name")
        if local(element) in ("p", "h") and style_name in before | after:
            if style_name in before:
                element.text = FORCED + (element.text or "")
            if style_name in after:
                SubElement(element, "end").tail = FORCED


def _attribute(element: Element, end: str) -> str:
    return next((value for key, value in element.attrib.items() if key.endswith(end)), "")


def _copies(element: Element, text: str, what: str) -> list[str]:
    """The text of a cell or a row as often as it stands there: alike neighbours are stored once."""
    count = _attribute(element, f"}}number-{what}-repeated") or "1"
    times = int(count) if len(count) < 9 and count.isdecimal() else 1
    return [text] * max(1, min(times, REPEATED, COPIED // max(len(text), 1)))


def _name(page: Element) -> str:
    return _attribute(page, "}name")


def _blocks(element: Element) -> str:
    return "\n\n".join(part for part in map(_block, element) if part)


def _block(element: Element) -> str:
    kind = local(element)
    if kind in SILENT:
        return ""
    if kind == "p":
        return _line(element).strip()
    if kind == "h":
        level = _attribute(element, "}outline-level") or "1"
        depth = int(level) if level in {*"123456"} else 6
        text = _line(element).strip()
        return fronted(text, f"{'#' * depth} ") if text else ""
    if kind in BREAKS:
        return BREAKS[kind]
    if kind == "list-item":
        return "\n".join(fronted(line, "- ") for line in filter(None, map(_block, element)))
    if kind == "list":
        return "\n".join(filter(None, map(_block, element)))
    if kind == "table-row":
        cells = ((cell, " ".join(filter(None, map(_block, cell)))) for cell in element)
        every = (text for cell, said in cells for text in _copies(cell, said, "columns"))
        return "\t".join(every).rstrip("\t")
    if kind == "table":
        rows = ((row, _block(row)) for row in element)
        return "\n".join(line for row, text in rows if text for line in _copies(row, text, "rows"))
    return _blocks(element)


def _line(element: Element) -> str:
    """The text of a paragraph; frames inside of it are part of the line."""
    pieces = [element.text or ""]
    for inner in element:
        kind = local(inner)
        if kind == "s":
            count = _attribute(inner, "}c") or "1"
            is_number = len(count) < 5 and count.isdecimal()
            pieces.append(" " * (min(int(count), SPACES) if is_number else 1))
        elif kind in BREAKS:
            pieces.append(BREAKS[kind])
        elif kind == "note":  # its number, then its text
            pieces.append(f" ({' '.join(filter(None, map(_block, inner[1:])))})")
        elif kind not in SILENT:
            pieces.append(_line(inner))
        pieces.append(inner.tail or "")
    return "".join(pieces)
