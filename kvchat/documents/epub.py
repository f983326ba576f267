"""EPUB: the chapters of the spine, in reading order."""

import posixpath
from urllib.parse import unquote

from kvchat.documents.archive import Archive
from kvchat.documents.html import declared, text_of
from kvchat.documents.plain import decoded
from kvchat.documents.section import Section, Sections
from kvchat.errors import KvchatError

CONTAINER = "META-INF/container.xml"
PAGES = ("application/xhtml+xml", "text/html")


def load(name: str, data: bytes, encoding: str | None) -> Sections:
    """Every chapter with text; its first heading is its name. Raises KvchatError("input")."""
    archive = Archive(name, data)
    root = archive.xml(CONTAINER).find(".//{*}rootfile")
    package = root.get("full-path", "") if root is not None else ""
    book = archive.xml(package)
    items = {item.get("id"): item for item in book.iterfind(".//{*}manifest/{*}item")}
    parts: list[Section] = []
    missing: list[str] = []
    seen: set[str] = set()
    for reference in book.iterfind(".//{*}spine/{*}itemref"):
        item = items.get(reference.get("idref"))
        if item is None or item.get("media-type") not in PAGES:
            continue
        folder = posixpath.dirname(package)
        member = posixpath.normpath(posixpath.join(folder, unquote(item.get("href", ""))))
        if member in seen:  # an item may stand in the spine once
            continue
        seen.add(member)
        if member not in archive:
            missing.append(member)
            continue
        data = archive.read(member)
        text = text_of(decoded(f"{name}: {member}", data, declared(data))[0])
        if text:
            parts.append(Section(_title(text, len(parts) + 1), text))
    if not parts:
        raise KvchatError("input", f"{name} has no chapters with text", "save it as plain text")
    notices = (f"{name}: {len(missing)} chapters are missing: {missing[0]} …",) if missing else ()
    return Sections(tuple(parts), "chapters", "epub", notices)


def _title(text: str, number: int) -> str:
    first = text.split("\n", 1)[0].lstrip("# ").strip()
    return first[:60] or f"chapter {number}"
