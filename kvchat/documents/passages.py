"""Passages of a document and what they are called: a page, a chapter or a line."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvchat.documents import Document, Place

# Where one sentence or paragraph ends and another begins.
# What goes on in small letters has not ended, nor does a title or an initial end anything.
ENDS = re.compile(
    r"(?<=[.!?。！？…])(?<!\b[A-Z]\.)(?<!\bMr\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bNo\.)(?<!\bMrs\.)"
    r"[\"'”’»)\]]*\s+(?=[^\sa-zß-öø-ÿ]|\Z)"
    r"|(?<=[。！？])|\n[ \t]*\n\s*|(?<=:)\s*\n\s*"
)
LONG = 300  # characters of a passage, about: a longer one is cut at the end of a line or word
LABEL = 40  # characters of a label, at most
MOST, NEXT = 4, 0.4  # parts that are cited, and of the best one's weight what another must have
GAP = 2  # characters between neighbours
# Marks of pages that stand in a text, a line each or in brackets.
PAGES = re.compile(
    r"^[ \t]*(?:[\[(<{=*~-]+[ \t]*)?(?:page|p\.|seite|pagina|página)[ \t]+(\d{1,5})"
    r"(?:[ \t]*(?:of|/|von|de)[ \t]*\d{1,5})?[ \t]*[\])>}=*~-]*[ \t]*$"
    r"|[\[<](?:page|pg\.?|p\.)[ \t]*(\d{1,5})[\]>]",
    re.IGNORECASE | re.MULTILINE,
)
HEADINGS = re.compile(r"^#{1,6}[ \t]+(\S.*)$", re.MULTILINE)
FENCES = re.compile(r"^(```|~~~).*?(?:^\1|\Z)", re.MULTILINE | re.DOTALL)
CHAPTERS = re.compile(
    r"^[ \t]*((?:chapter|kapitel|chapitre|capítulo|part|book|act|letter)[ \t]+"
    r"(?:[ivxlc]{1,8}|\d{1,3}|one|two|three|four|five|six|seven|eight|nine|ten)\b[^\n]{0,60})$",
    re.IGNORECASE | re.MULTILINE,
)
# Of contracts and laws: a line of its own that begins with the number of a clause.
CLAUSES = re.compile(
    r"^[ \t]*((?:§+|art(?:icle|ikel|icolo|\.)?|section|sec\.|clause|abschnitt|schedule|annex)"
    r"[ \t]*(?:[ivxlc]{1,8}|\d{1,4}[a-z]?(?:\.\d{1,3}){0,3})\b[^\n]{0,60})$"
    r"|^[ \t]*(\d{1,3}(?:\.\d{1,3}){0,3}\.?[ \t]+[^\W\d_][^\n]{1,58}[^\s.,;:!?])$",
    re.IGNORECASE | re.MULTILINE,
)
# Files in which `#` begins a remark and a number nothing: only their lines are counted.
CODE = re.compile(
    r"\.(py|pyi|sh|bash|zsh|rb|pl|r|jl|ya?ml|toml|ini|cfg|conf|env|c|h|cc|cpp|hpp|cs|java|js|ts|go|rs"
    r"|php|lua|sql|mk|cmake|csv|tsv|jsonl?|log)$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Source:
    """A passage that an answer is from.

    `start` and `end` are characters of the document's text, `text` is what stands there, `label`
    the page (`p. 12`), chapter or line where it begins. `weight` is its share of what the answer
    attended to in the documents, 0 to 1.
    """

    document: str
    start: int
    end: int
    label: str
    text: str
    weight: float


def spans(text: str) -> list[tuple[int, int]]:
    """The sentences of a text and what else stands by itself, as characters from and to."""
    found, begin = list[tuple[int, int]](), 0
    for end in [*ENDS.finditer(text), None]:
        stop = len(text) if end is None else end.end()
        found += _cut(text, begin, stop)
        begin = stop
    return found


def _cut(text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """A span in pieces that are not too long, without the spaces around it."""
    while end - begin > LONG:
        at = max(text.rfind("\n", begin + LONG // 2, begin + LONG), begin)
        at = at if at > begin else text.rfind(" ", begin + LONG // 2, begin + LONG)
        at = at if at > begin else begin + LONG
        yield from _stripped(text, begin, at)
        begin = at
    yield from _stripped(text, begin, end)


def _stripped(text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    part = text[begin:end]
    if part.strip():
        yield begin + len(part) - len(part.lstrip()), begin + len(part.rstrip())


def marks(document: Document) -> tuple[Place, ...]:
    """Where pages or chapters begin, by the names that they are cited by; none: lines are counted.

    Those that the file has, else marks of pages in the text, else headings.
    """
    if len(document.places) > 1:
        return tuple(Place(_called(place.name), place.start) for place in document.places)
    pages = [(int(m[1] or m[2]), m.start(), m.end()) for m in PAGES.finditer(document.text)]
    if len(pages) > 1:
        number, begin, _ = pages[0]
        if number == 1 and document.text[:begin].strip():  # they stand below their pages
            pages = [(1, 0, 0), *((number + 1, end, end) for number, _, end in pages)]
        return tuple(Place(f"p. {number}", start) for number, start, _ in pages)
    if CODE.search(document.name):
        return ()
    for form in (_headings, _chapters, _clauses):
        if len(found := form(document.text)) > 1:
            return tuple(found)
    return ()


def _headings(text: str) -> list[Place]:
    """Headings of Markdown; in a listing of code they are remarks."""
    listings = [(m.start(), m.end()) for m in FENCES.finditer(text)]
    starts, found = [start for start, _ in listings], []
    for m in HEADINGS.finditer(text):
        at = bisect_right(starts, m.start()) - 1
        if at < 0 or m.start() >= listings[at][1]:
            found.append(Place(_short(m[1]), m.start()))
    return found


def _chapters(text: str) -> list[Place]:
    return [Place(_short(m[1]), m.start()) for m in CHAPTERS.finditer(text)]


def _clauses(text: str) -> list[Place]:
    """Numbered clauses behind an empty line; where the number has no name, before one too."""
    found = []
    for m in CLAUSES.finditer(text):
        before = text[max(m.start() - 2, 0) : m.start()]
        if before in ("", "\n", "\n\n") and (m[1] or text[m.end() : m.end() + 2] == "\n\n"):
            found.append(Place(_short(m[1] or m[2]), m.start()))
    return found


def label_at(document: Document, known: Sequence[Place], offset: int) -> str:
    """What the place of a character is called; `known` are the document's marks."""
    at = bisect_right([place.start for place in known], offset) - 1
    if at >= 0:
        return known[at].name
    return f"line {document.text.count(chr(10), 0, offset) + 1:,}"


def _called(name: str) -> str:
    number = re.fullmatch(r"page (\d+)", name)
    return f"p. {number[1]}" if number else _short(name)


def _short(name: str) -> str:
    line = " ".join(name.split())
    return line if len(line) <= LABEL else f"{line[: LABEL - 1]}…"


def best(
    weights: Sequence[float], begins: Sequence[int], parts: Sequence[tuple[int, int]]
) -> list[tuple[int, int, float]]:
    """The parts with most weight, heaviest first: characters from and to, and their weight.

    `weights[t]` is what token t is worth, which begins at character `begins[t]`, ascending; what
    stands outside of all `parts` counts for none. Neighbours become one.
    """
    starts, sums = [a for a, _ in parts], [0.0] * len(parts)
    for weight, begin, end in zip(weights, begins, [*begins[1:], begins[-1] + 1], strict=True):
        # a token belongs where its last letter is: many begin with the space before a word
        at = bisect_right(starts, max(begin, end - 1)) - 1
        if weight > 0 and at >= 0 and begin < parts[at][1]:
            sums[at] += weight
    ranked = sorted((n for n, each in enumerate(sums) if each > 0), key=lambda n: -sums[n])
    kept = [n for n in ranked[:MOST] if sums[n] >= NEXT * sums[ranked[0]]]
    found = list[tuple[int, int, float]]()
    for number in sorted(kept):
        begin, end = parts[number]
        if found and begin - found[-1][1] <= GAP and found[-1][1] == parts[number - 1][1]:
            first, _, worth = found.pop()
            found.append((first, end, worth + sums[number]))
        else:
            found.append((begin, end, sums[number]))
    return sorted(found, key=lambda each: -each[2])
