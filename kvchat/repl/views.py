"""Pictures of the cache in plain characters: kept entries per head, coverage of the documents, the
context window. Pure functions of numbers; only `tokens_of_files` asks a chat."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from kvchat.chat.chat import Chat

BLOCKS = "▁▂▃▄▅▆▇█"
DIGITS = "0123456789"
GROUP = 8  # layers between gaps
CELLS = 60
NAMES = 24  # columns of names, at most
AXIS = 12  # columns of a name below a strip, at most


def glyph(share: float, unicode: bool) -> str:
    """A character whose height (or digit) is a share between 0 and 1; a space for exactly 0."""
    if share <= 0:
        return " " if unicode else "0"
    scale = BLOCKS if unicode else DIGITS
    return scale[min(int(share * len(scale)), len(scale) - 1)]


def bar(share: float, room: int, unicode: bool) -> str:
    """A bar of at most `room` columns for a share between 0 and 1."""
    return ("█" if unicode else "#") * round(room * max(share, 0))


def bars(parts: Sequence[tuple[str, int]], whole: int, width: int, unicode: bool) -> list[str]:
    """A line for each `(name, count)`: its share of `whole`, and a bar of that."""
    most = min(max(len(name) for name, _ in parts), NAMES)
    room = max(width - most - 24, 4)
    lines = []
    for name, count in parts:
        share = count / whole
        start = f"{name[:most]:<{most}} {count:>9,} {share:6.1%}  "
        lines.append(f"{start}{bar(share, room, unicode)}".rstrip())
    return lines


def grouped(cells: Sequence[str]) -> str:
    """Characters in groups of eight."""
    return " ".join("".join(cells[a : a + GROUP]) for a in range(0, len(cells), GROUP))


def heads(entries: Sequence[Sequence[int]], tokens: int, width: int, unicode: bool) -> list[str]:
    """Kept entries per layer and KV head, `entries[layer][head]`, of the `tokens` there were.

    One line per head, one character per layer; layers that do not fit begin another band.
    """
    every = [(n, layer, head) for layer, row in enumerate(entries) for head, n in enumerate(row)]
    least, most = min(every), max(every)
    name_width = len(f"head {len(entries[0]) - 1}")
    fitting = (width - name_width - 12) * GROUP // (GROUP + 1)
    band = max(fitting // GROUP * GROUP, GROUP)
    full = f"{glyph(1, unicode)} = {most[0]:,}"
    lines = [f"KV entries kept per layer and KV head, of {tokens:,} · {full}"]
    for first in range(0, len(entries), band):
        part = entries[first : first + band]
        lines.append(f"{'layer':<{name_width}}  {_ruler(first, len(part))}   mean")
        for head in range(len(part[0])):
            cells = [glyph(layer[head] / max(most[0], 1), unicode) for layer in part]
            mean = sum(layer[head] for layer in part) / len(part) / tokens
            lines.append(f"{f'head {head}':<{name_width}}  {grouped(cells)}  {mean:5.1%}")
    mean = sum(n for n, _, _ in every) / len(every)
    ends = (
        f"{name} {n:,} (layer {layer} head {head})"
        for name, (n, layer, head) in (("least", least), ("most", most))
    )
    lines.append(" · ".join([*ends, f"mean {mean:,.0f} = {mean / tokens:.1%}"]))
    return lines


def merged(sets: Sequence[int]) -> list[str]:
    """How many tokens the entries stand for that were merged: `sets` has those of every entry."""
    several = [size for size in sets if size > 1]
    if not several:
        return ["no entry stands for several tokens"] if sets else []
    edges = {"2": (2, 2), "3": (3, 3), "4–7": (4, 7), "8–15": (8, 15), "16+": (16, max(several))}
    counts = {name: sum(a <= size <= b for size in several) for name, (a, b) in edges.items()}
    shown = " · ".join(f"{name} {count:,}" for name, count in counts.items() if count)
    return [
        f"{len(several):,} of {len(sets):,} entries were merged, of "
        f"{sum(several) / len(several):.1f} tokens on average, {max(several):,} at most",
        f"entries by the tokens they stand for: 1 {len(sets) - len(several):,} · {shown}",
    ]


@dataclass(frozen=True)
class Slice:
    """A stretch of the documents: tokens `start` to `end`, and the share of entries kept of it."""

    start: int
    end: int
    share: float


def slices(kept: Sequence[int], tokens: int, per_token: int, cells: int = CELLS) -> list[Slice]:
    """Cut the documents into `cells` slices; `kept[t]` of `per_token` entries are there of t."""
    cells = max(min(cells, tokens), 1)
    edges = [tokens * cell // cells for cell in range(cells + 1)]
    return [Slice(a, b, sum(kept[a:b]) / max((b - a) * per_token, 1)) for a, b in pairwise(edges)]


def coverage(
    found: Sequence[Slice],
    words: Sequence[str],
    places: Sequence[tuple[str, int]],
    unicode: bool,
    cited: Sequence[int] = (),
) -> list[str]:
    """A strip along the documents with its places below, and what is kept least: chapters, and
    slices with their words.

    `places` are names of chapters or pages with the token where each begins; `words[n]` are the
    first ones of slice n, `cited` the tokens at which the last answer's sources begin.
    """
    most, end = max(piece.share for piece in found) or 1.0, found[-1].end
    each = round(end / len(found))
    lines = [
        f"KV entries kept along the documents: {glyph(1, unicode)} = {most:.0%} of about {each:,} "
        "tokens",
        "".join(glyph(piece.share / most, unicode) for piece in found),
    ]
    if marked := {min(at * len(found) // end, len(found) - 1) for at in cited}:
        mark = "▲" if unicode else "^"
        line = "".join(mark if cell in marked else " " for cell in range(len(found)))
        lines.append(f"{line.rstrip()} the last answer is from here")
    lines.append(axis(places, end, len(found)))
    if min(piece.share for piece in found) == most:
        return [*lines, f"{most:.0%} is kept of every part: no place is worse than another"]
    lines.append("least kept:")
    if len(places) > 1:
        ends = [*(start for _, start in places[1:]), end]
        shares = [
            (_between(found, start, stop), name)
            for (name, start), stop in zip(places, ends, strict=True)
        ]
        ranked = sorted(shares, key=lambda pair: pair[0])
        lines += [f"  {share:4.0%} of {name}" for share, name in ranked[:4]]
    emptiest = sorted(range(len(found)), key=lambda index: found[index].share)[:3]
    for index in sorted(emptiest):
        piece = found[index]
        lines.append(
            f"  {piece.share:4.0%} of tokens {piece.start:,}–{piece.end:,}: {words[index]} …"
        )
    return lines


def axis(places: Sequence[tuple[str, int]], end: int, cells: int) -> str:
    """Names of places below the cells where they begin, as many as there is room for, and the
    number of tokens."""
    line, last = "", f"{end:,} tokens"
    for name, start in places if len(places) > 1 else [("0", 0)]:
        at, short = start * cells // max(end, 1), name[:AXIS]
        if at >= len(line) + (2 if line else 0) and at + len(short) + 2 <= cells - len(last):
            line = f"{line:<{at}}{short}"
    return f"{line:<{max(cells - len(last), 0)}}{last}"


def tokens_of_files(chat: Chat) -> list[int]:
    """Tokens of each file: exact for a single one, else by tokenizing each by itself."""
    files, session = chat.book.files, chat.session
    if len(files) == 1:
        lead = len(session.dialogue.document(""))
        return [len(session.document) - lead]
    encode = session.dialogue.tokenizer.encode
    return [len(encode([(f"# {f.title}\n\n{f.text}", False)], continues=True)) for f in files]


def _between(found: Sequence[Slice], start: int, end: int) -> float:
    """Mean share of the slices that touch tokens `start` to `end`."""
    touched = [
        piece.share for piece in found if piece.start < max(end, start + 1) and piece.end > start
    ]
    return sum(touched) / len(touched) if touched else 0.0


def _ruler(first: int, count: int) -> str:
    """Numbers of the first layer of each group, above their columns."""
    marks = [f"{first + a:<{min(GROUP, count - a)}}" for a in range(0, count, GROUP)]
    return " ".join(marks)
