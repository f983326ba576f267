"""Numbers and foreign text as a person reads them: pure functions, no terminal."""

import re
from collections.abc import Sequence

from rich.cells import cell_len

# Where a line is broken rather than at any space: after statements, then after clauses.
BREAKS = (re.compile(r" · | – "), re.compile(r"[,;:] | (?=\()| (?=→)| (?=\+ )"))

# Words of an environment variable that is on or off.
WORDS = {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False, "": False}
UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "B": 1}
FIRST = 60  # characters of a first line
# C0 but newline and tab, DEL, C1, bidirectional overrides: they could steer the terminal.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """Text of documents, file names and models with control characters made visible as `·`."""
    return CONTROL.sub("·", text.replace("\r\n", "\n"))


def escaped(text: str) -> str:
    """JSON with control characters of every kind as escapes: it means the same."""
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def size(count: float) -> str:
    """Bytes in binary units with three figures: `0.86 GiB`, `13.5 MiB`, `512 B`."""
    return alike(count)[0]


def alike(*counts: float) -> list[str]:
    """Bytes in the unit that the largest of them needs: `4.75 MiB`, `0.20 MiB`."""
    most = max(counts)
    # GiB already from a tenth of one: memory is told in GiB as far as it is readable
    name = next((n for n, u in UNITS.items() if most >= (u / 10 if n == "GiB" else u)), "B")
    values = [count / UNITS[name] for count in counts]
    return [f"{v:.{2 if name != 'B' and v < 100 else 0}f} {name}" for v in values]


def sizes(part: float, whole: float) -> str:
    """`0.86 of 3.41 GiB`: two sizes and their unit."""
    a, b = alike(part, whole)
    return f"{a.split()[0]} of {b}"


def kept_of(kept: float, full: float) -> str:
    """`0.86 of 3.41 GiB`; what is kept alone where room to grow makes it the larger one."""
    return sizes(kept, full) if kept < full else size(kept)


def counted(count: int, what: str) -> str:
    """`1 turn`, `2 turns`, `1,204 turns`."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def first_line(text: str) -> str:
    """The first line of a text that may be empty, cut where it is long."""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= FIRST else f"{line[: FIRST - 1]}…"


def fitted(parts: Sequence[tuple[str, int]], width: int) -> str:
    """`a · b · c` in `width` columns: parts of high numbers go first, those of 0 never."""
    left = list(parts)
    while len(line := " · ".join(text for text, _ in left)) > width:
        least = max(left, key=lambda part: part[1])
        if not least[1]:
            break
        left.remove(least)
    return line


def laid(text: str, width: int, indent: int = 2) -> str:
    """Lines of at most `width` columns, what goes on indented more; broken between statements.

    A word that is longer than a line is left to the terminal.
    """
    return "\n".join(part for line in text.split("\n") for part in _broken(line, width, indent))


def _broken(line: str, width: int, indent: int) -> list[str]:
    margin = " " * (len(line) - len(line.lstrip()) + indent)
    parts = []
    while cell_len(line) > width:
        fits = line[: width + 1]
        while cell_len(fits) > width + 1:
            fits = fits[:-1]
        least = max(len(margin), width // 2)
        ends = [max((m.end() for m in mark.finditer(fits)), default=0) for mark in BREAKS]
        at = next((end for end in ends if end > least), 0) or fits.rfind(" ", len(margin) + 1) + 1
        if not at:
            break
        parts.append(line[:at].rstrip())
        line = margin + line[at:].lstrip()
    return [*parts, line]


def short(count: float) -> str:
    """Tokens for a narrow place: `512`, `27.9k`."""
    return f"{count:.0f}" if count < 1000 else f"{count / 1000:.1f}k"


def seconds(value: float) -> str:
    """`0.06 s`, `6.6 s`, `74 s`."""
    return f"{value:.2f} s" if value < 1 else f"{value:.1f} s" if value < 60 else f"{value:.0f} s"


def ratio(part: float, whole: float) -> str:
    """`25 % (4.0× smaller)`, or `all of it`."""
    if part >= whole:
        return "all of it"
    return f"{100 * part / whole:.3g} % ({whole / part:.1f}× smaller)"


def level(fraction: float) -> str:
    """How full the context window is in a word, so that nothing depends on colour."""
    return "almost full" if fraction >= 0.95 else "high" if fraction >= 0.8 else ""


def unicode(text: str) -> str:
    """Text of the command line or of a terminal; bytes that were not UTF-8 become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
