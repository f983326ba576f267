"""Slides (PPTX) and sheets (XLSX): their texts, a part for each slide or sheet."""

import posixpath
import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from kvchat.documents.archive import TOTAL_CAP, Archive
from kvchat.documents.section import Section, Sections
from kvchat.documents.xml import local
from kvchat.errors import KvchatError

RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
COLUMN = re.compile(r"([A-Z]{1,3})\d+")
COLUMNS_CAP = 1000  # of a sheet; empty ones between two cells are tabs
SLIDES, SHEETS = "ppt/presentation.xml", "xl/workbook.xml"


def load(name: str, data: bytes, encoding: str | None) -> Sections:
    """The parts with text, in their order. Raises KvchatError("input")."""
    archive = Archive(name, data)
    if SLIDES in archive:
        unit, found = "slides", _slides(archive)
    else:
        unit, found = "sheets", _sheets(archive)
    parts = tuple(section for section in found if section.text)
    if not parts:
        raise KvchatError("input", f"{name} has no {unit} with text", "save it as plain text")
    return Sections(parts, unit, "office")


def _members(archive: Archive, main: str, kind: str) -> Iterator[tuple[Element, str]]:
    """Every element of that name in a main part, and the member that it stands for."""
    folder, file = posixpath.split(main)
    related = archive.xml(f"{folder}/_rels/{file}.rels")
    targets = {each.get("Id"): each.get("Target", "") for each in related}
    seen: set[str] = set()
    for element in archive.xml(main).iterfind(f".//{{*}}{kind}"):
        target = targets.get(element.get(RELATION), "")
        member = posixpath.normpath(posixpath.join(f"/{folder}", target)).lstrip("/")
        if member in archive and member not in seen:
            seen.add(member)
            yield element, member


def _slides(archive: Archive) -> Iterator[Section]:
    for number, (_, member) in enumerate(_members(archive, SLIDES, "sldId"), 1):
        lines = []
        for paragraph in archive.xml(member).iterfind(".//{*}p"):
            pieces = [
                "\n" if local(each) == "br" else each.text or ""
                for each in paragraph.iter()
                if local(each) in ("t", "br")
            ]
            lines.append("".join(pieces).strip())
        yield Section(f"slide {number}", "\n".join(filter(None, lines)))


def _sheets(archive: Archive) -> Iterator[Section]:
    shared = []
    if "xl/sharedStrings.xml" in archive:
        shared = [_text(each) for each in archive.xml("xl/sharedStrings.xml")]
    room = TOTAL_CAP  # characters: a text that is shared can stand in every cell
    for sheet, member in _members(archive, SHEETS, "sheet"):
        rows = []
        for row in archive.xml(member).iterfind(".//{*}sheetData/{*}row"):
            cells: list[str] = []
            for cell in row:
                gap = _column(cell.get("r", "")) - len(cells)
                cells += [""] * max(0, min(gap, COLUMNS_CAP - len(cells)))
                cells.append(_cell(cell, shared))
            rows.append("\t".join(cells).rstrip())
            room -= len(rows[-1])
            if room < 0:
                raise KvchatError("input", f"{archive.name} has more than {TOTAL_CAP:,} characters")
        text = "\n".join(filter(None, rows))
        title = sheet.get("name", "")
        yield Section(title, f"# {title}\n\n{text}" if text else "")


def _cell(cell: Element, shared: list[str]) -> str:
    value = cell.findtext("{*}v") or ""
    if cell.get("t") == "s":
        number = int(value) if value.isdecimal() and len(value) < 10 else -1
        value = shared[number] if 0 <= number < len(shared) else ""
    elif cell.get("t") == "inlineStr":
        value = _text(cell)
    return " ".join(value.split())


def _text(element: Element) -> str:
    return "".join(each.text or "" for each in element.iter() if local(each) == "t")


def _column(place: str) -> int:
    """The number of a column from 0: `AB12` is 27."""
    found, number = COLUMN.fullmatch(place), 0
    for letter in found[1] if found else "":
        number = 26 * number + ord(letter) - ord("A") + 1
    return number - 1
