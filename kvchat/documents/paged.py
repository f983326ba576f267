"""Pages of a text in which a word processor has marked where they break."""

import re
from collections import Counter

from kvchat.documents.section import WHOLE, Section, Sections

# Where a page broke when it was last laid out, and where it has to break. Loaders put these into
# their text; Unicode has no characters here.
LAID, FORCED = "\ufdd0", "\ufdd1"
MARKS = re.compile(f"([{LAID}{FORCED}])")
PAGE = 6000  # characters: without marks of the layout, more show that pages broke unmarked


def paged(name: str, text: str, encoding: str) -> Sections:
    """The pages of a text with marks; all of it where there are none that can be believed."""
    first, *rest = MARKS.split(text)
    pages, blank, seen = [first], "", Counter[str]()
    for mark, piece in zip(rest[::2], rest[1::2], strict=True):
        seen[mark] += 1
        blank += piece
        if piece.strip():
            before, after = pages[-1].rstrip(), piece.lstrip()
            spaces = pages[-1][len(before) :] + blank.removesuffix(after)
            pages[-1] = before + ("\n\n" if spaces.count("\n") > 1 else spaces[:1])
            # a break that was laid out stands behind the one that forced it
            skipped = [""] * (max(seen.values()) - 1)
            pages = [*pages, *skipped, after] if before or pages[1:] else [after]
            blank, seen = "", Counter()
    told = LAID in text or max(map(len, pages)) <= PAGE
    if len(pages) == 1 or not told:
        return Sections((Section(name, "".join(pages)),), WHOLE, encoding)
    parts = (Section(f"page {number}", page) for number, page in enumerate(pages, 1))
    return Sections(tuple(part for part in parts if part.text), "pages", encoding, gap="")


def fronted(text: str, mark: str) -> str:
    """A paragraph's text behind a mark of its own (`# `, `- `); page breaks that it begins with
    stand before that."""
    rest = text.lstrip(f"{LAID}{FORCED} ")
    return text[: len(text) - len(rest)].replace(" ", "") + mark + rest
