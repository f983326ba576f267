"""OpenDocument: paragraphs, headings, lists and tables of a text; sheets and slides too."""

from xml.etree.ElementTree import Element

from kvchat.documents.archive import Archive
from kvchat.documents.section import WHOLE, Section, Sections
from kvchat.documents.xml import local
from kvchat.errors import KvchatError

MAIN = "content.xml"
# Deleted text, remarks, what is drawn or computed, and texts that stand elsewhere too.
SILENT = {"tracked-changes", "annotation", "forms", "sequence-decls", "notes", "binary-data"}
BREAKS = {"tab": "\t", "line-break": "\n"}
SPACES = 100  # the most that one element can stand for
PAGES = {"table": "sheets", "page": "slides"}


def load(name: str, data: bytes, encoding: str | None) -> Sections:
    """The text of a document; sheets and slides are its parts. Raises KvchatError("input")."""
    body = Archive(name, data).xml(MAIN).find("{*}body")
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
    return Sections((Section(name, _blocks(kind)),), WHOLE, "odf")


def _name(page: Element) -> str:
    return next((value for key, value in page.attrib.items() if key.endswith("}name")), "")


def _blocks(element: Element) -> str:
    return "\n\n".join(part for part in map(_block, element) if part)


def _block(element: Element) -> str:
    kind = local(element)
    if kind in SILENT:
        return ""
    if kind == "p":
        return _line(element).strip()
    if kind == "h":
        level = next((v for k, v in element.attrib.items() if k.endswith("}outline-level")), "1")
        depth = int(level) if level in {*"123456"} else 6
        text = _line(element).strip()
        return f"{'#' * depth} {text}" if text else ""
    if kind == "list-item":
        return "\n".join(f"- {line}" for line in filter(None, map(_block, element)))
    if kind == "list":
        return "\n".join(filter(None, map(_block, element)))
    if kind == "table-row":
        cells = (" ".join(filter(None, map(_block, cell))) for cell in element)
        return "\t".join(cells).rstrip("\t")
    if kind == "table":
        return "\n".join(filter(None, map(_block, element)))
    return _blocks(element)


def _line(element: Element) -> str:
    """The text of a paragraph; frames inside of it are part of the line."""
    pieces = [element.text or ""]
    for inner in element:
        kind = local(inner)
        if kind == "s":
            count = next((v for k, v in inner.attrib.items() if k.endswith("}c")), "1")
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
