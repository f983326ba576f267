"""FictionBook: the chapters of a book in one XML file; its pictures are left out."""

from xml.etree.ElementTree import Element

from kvchat.documents.section import Section, Sections
from kvchat.documents.xml import damaged, local, parsed
from kvchat.errors import KvchatError

LINES = {"p", "v", "text-author", "subtitle", "date"}


def load(name: str, data: bytes, encoding: str | None) -> Sections:
    """Every top section of every body; its title is its name. Raises KvchatError("input")."""
    try:
        book = parsed(data)
    except Exception as error:  # any codec of Python's may be at work
        damaged(name, error)
    parts: list[Section] = []
    for body in (each for each in book if local(each) == "body"):
        before: list[Element] = []  # a title, an epigraph: part of what follows
        for element in body:
            before.append(element)
            if local(element) == "section":
                parts += _section(before, len(parts) + 1)
                before = []
        parts += _section(before, len(parts) + 1)
    if not parts:
        raise KvchatError("input", f"{name} has no chapters with text", "save it as plain text")
    return Sections(tuple(parts), "chapters", "fb2")


def _section(elements: list[Element], number: int) -> list[Section]:
    text = "\n\n".join(part for each in elements if (part := _block(each, 0)))
    if not text:
        return []
    title = text.split("\n", 1)[0].lstrip("# ").strip()
    return [Section(title[:60] or f"chapter {number}", text)]


def _block(element: Element, depth: int) -> str:
    kind = local(element)
    if kind in LINES:
        return "".join(element.itertext()).strip()
    if kind == "title":
        lines = filter(None, (" ".join("".join(each.itertext()).split()) for each in element))
        text = " ".join(lines)
        return f"{'#' * min(max(depth, 1), 6)} {text}" if text else ""
    if kind == "tr":
        return "\t".join(" ".join("".join(cell.itertext()).split()) for cell in element)
    deeper = depth + (kind == "section")
    mark = "\n" if kind in ("stanza", "table") else "\n\n"
    return mark.join(part for each in element if (part := _block(each, deeper)))
