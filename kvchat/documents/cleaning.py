"""`--clean`: leaves out headers and footers that pages repeat, and joins words broken at line ends.
What was done is said with numbers."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from unicodedata import normalize

from kvchat.documents.section import Section, Sections

EDGE = 2  # lines at either end of a page that may be a header or a footer
LEAST_PAGES = 3
SHARE = 0.5  # of the pages that must have a line for it to be one
NUMBER = re.compile(r"\d+")  # what differs from page to page
# A hyphen that is seen only where a line ends behind it, and how PDFium marks one that was seen.
SOFT = re.compile("[\u00ad\ufffe]\n?")
LIGATURES = re.compile("[\ufb00-\ufb06]")
BROKEN = re.compile(r"(?<=[a-zà-öø-ÿ])-\n[ \t]*(?=[a-zà-öø-ÿ])")


def as_letters(text: str) -> str:
    """Text without soft hyphens and ligatures: they are of typesetting, and rare tokens."""
    return LIGATURES.sub(lambda found: normalize("NFKC", found[0]), SOFT.sub("", text))


def joined(text: str) -> tuple[str, int]:
    """Text whose words are not broken at the ends of lines, and how many were."""
    return BROKEN.subn("", text)


def cleaned(name: str, sections: Sections) -> Sections:
    """The same parts without repeated lines and broken words."""
    pages = [part.text.split("\n") for part in sections.parts]
    borders = [edges(lines) for lines in pages]
    repeated = headers(borders)
    parts, count, characters, words = [], 0, 0, 0
    for part, lines, border in zip(sections.parts, pages, borders, strict=True):
        gone = {i for i, line in border.items() if line in repeated}
        if gone:
            count, characters = count + len(gone), characters + sum(len(lines[i]) + 1 for i in gone)
            lines = [line for i, line in enumerate(lines) if i not in gone]
        text, broken = joined(as_letters("\n".join(lines)).replace("\u200b", ""))
        parts.append(Section(part.name, text))
        words += broken
    note = (
        f"{name}: {count:,} repeated header and footer lines ({characters:,} characters) were left "
        f"out and {words:,} broken words joined, as --clean says"
    )
    return replace(sections, parts=tuple(parts), notices=(*sections.notices, note))


def headers(borders: Sequence[Mapping[int, str]]) -> set[str]:
    """What stands at an end of most pages."""
    if len(borders) < LEAST_PAGES:
        return set()
    seen = Counter(line for border in borders for line in set(border.values()))
    return {line for line, count in seen.items() if count > SHARE * len(borders)}


def edges(lines: Sequence[str]) -> dict[int, str]:
    """The first and last lines that are not empty by their index, with `#` for every number."""
    full = [i for i, line in enumerate(lines) if line and not line.isspace()]
    depth = EDGE if len(full) >= 3 * EDGE else 1  # most of a short page is text
    return {i: NUMBER.sub("#", lines[i].strip()) for i in (*full[:depth], *full[-depth:])}
