"""`--clean`: leaves out headers and footers that pages repeat, and joins words broken at line ends.
What was done is said with numbers."""

import re
from collections import Counter
from collections.abc import Sequence

from kvchat.documents.section import Section, Sections

EDGE = 2  # lines at either end of a page that may be a header or a footer
LEAST_PAGES = 3
SHARE = 0.5  # of the pages that must have a line for it to be one
BROKEN = re.compile(r"(?<=[a-zà-öø-ÿ])-\n[ \t]*(?=[a-zà-öø-ÿ])")


def cleaned(name: str, sections: Sections) -> Sections:
    """The same parts without repeated lines and broken words."""
    repeated = headers([part.text for part in sections.parts])
    parts, lines, characters, words = [], 0, 0, 0
    for part in sections.parts:
        kept, gone = without(part.text.split("\n"), repeated)
        text, joined = BROKEN.subn("", "\n".join(kept))
        parts.append(Section(part.name, text))
        lines, words = lines + len(gone), words + joined
        characters += sum(len(line) + 1 for line in gone)
    note = (
        f"{name}: {lines:,} repeated header and footer lines ({characters:,} characters) were left "
        f"out and {words:,} broken words joined, as --clean says"
    )
    return Sections(tuple(parts), sections.unit, sections.encoding, (*sections.notices, note))


def headers(pages: Sequence[str]) -> set[str]:
    """Lines, with `#` for every number, that stand at an end of most pages."""
    if len(pages) < LEAST_PAGES:
        return set()
    seen: Counter[str] = Counter()
    for page in pages:
        lines = page.split("\n")
        seen.update({pattern(lines[i]) for i in edges(lines)})
    return {line for line, count in seen.items() if count > SHARE * len(pages)}


def without(lines: Sequence[str], repeated: set[str]) -> tuple[list[str], list[str]]:
    """Lines that stay, and those that go."""
    gone = {i for i in edges(lines) if pattern(lines[i]) in repeated}
    kept = [line for i, line in enumerate(lines) if i not in gone]
    return kept, [lines[i] for i in sorted(gone)]


def edges(lines: Sequence[str]) -> list[int]:
    """Indices of the first and last lines that are not empty."""
    full = [i for i, line in enumerate(lines) if line.strip()]
    depth = EDGE if len(full) >= 3 * EDGE else 1  # most of a short page is text
    return sorted({*full[:depth], *full[-depth:]})


def pattern(line: str) -> str:
    """A line without what differs from page to page."""
    return re.sub(r"\d+", "#", line.strip())
