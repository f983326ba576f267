"""Pictures of the cache in plain characters: kept entries per head, coverage of the document, the
window. Pure functions of numbers; only `near` asks a chat."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from kvchat.chat.chat import Chat
from kvchat.terminal.text import size

BLOCKS = "▁▂▃▄▅▆▇█"
DIGITS = "0123456789"
GROUP = 8  # layers or cells between gaps
CELLS = 60


def glyph(share: float, unicode: bool) -> str:
    """A character whose height (or digit) is a share between 0 and 1; a space for exactly 0."""
    if share <= 0:
        return " " if unicode else "0"
    scale = BLOCKS if unicode else DIGITS
    return scale[min(int(share * len(scale)), len(scale) - 1)]


def grouped(cells: Sequence[str]) -> str:
    """Characters in groups of eight."""
    return " ".join("".join(cells[a : a + GROUP]) for a in range(0, len(cells), GROUP))


def heads(entries: Sequence[Sequence[int]], tokens: int, width: int, unicode: bool) -> list[str]:
    """Kept entries per layer and KV head, `entries[layer][head]`, of `tokens` that were read.

    One line per head, one character per layer; layers that do not fit begin another band.
    """
    if not tokens or not entries or not entries[0]:
        return ["no document is read"]
    most = max(max(layer) for layer in entries)
    name_width = len(f"head {len(entries[0]) - 1}")
    fitting = (width - name_width - 12) * GROUP // (GROUP + 1)
    band = max(fitting // GROUP * GROUP, GROUP)
    full = "█" if unicode else "9"
    lines = [f"tokens kept per KV head · {tokens:,} read · {full} = {most:,}"]
    for first in range(0, len(entries), band):
        part = entries[first : first + band]
        label = "layer" if name_width >= 5 else ""
        lines.append(f"{label:<{name_width}}  {_ruler(first, len(part))}   mean")
        for head in range(len(part[0])):
            cells = [glyph(layer[head] / most, unicode) for layer in part]
            mean = sum(layer[head] for layer in part) / len(part) / tokens
            lines.append(f"{f'head {head}':<{name_width}}  {grouped(cells)}  {mean:5.1%}")
    every = [
        (n, layer, head) for layer, entry in enumerate(entries) for head, n in enumerate(entry)
    ]
    least, largest = min(every), max(every)
    mean_entries = sum(n for n, _, _ in every) / len(every)
    lines.append(
        f"least {least[0]:,} (L{least[1]} H{least[2]}) · most {largest[0]:,} (L{largest[1]} "
        f"H{largest[2]}) · mean {mean_entries:,.0f} = {mean_entries / tokens:.1%}"
    )
    return lines


def one_layer(
    entries: Sequence[int],
    tokens: int,
    layer: int,
    width: int,
    unicode: bool,
    sets: Sequence[Sequence[int]] = (),
) -> list[str]:
    """The heads of one layer: a bar, entries kept and their share.

    `sets[head]` are the tokens that each entry stands for, if entries were merged.
    """
    if not tokens:
        return ["no document is read"]
    room = max(width - (40 if any(sets) else 28), 8)
    most = max(entries)
    lines = [f"layer {layer} · tokens kept of {tokens:,}"]
    for head, count in enumerate(entries):
        bar = ("█" if unicode else "#") * round(room * count / max(most, 1))
        largest = f"  sets ≤ {max(sets[head]):,}" if any(sets) and sets[head] else ""
        lines.append(f"head {head:<3} {bar:<{room}} {count:>8,} {count / tokens:6.1%}{largest}")
    return lines + merged([size for head in sets for size in head])


def merged(sets: Sequence[int]) -> list[str]:
    """How many tokens the entries stand for that were merged: `sets` has those of every entry."""
    several = [size for size in sets if size > 1]
    if not several:
        return ["no entry stands for several tokens"] if sets else []
    edges = [(2, 2), (3, 3), (4, 7), (8, 15), (16, max(*several, 16))]
    names = ("2", "3", "4–7", "8–15", "16+")
    counts = [sum(a <= size <= b for size in several) for a, b in edges]
    shown = " · ".join(f"{n} {c:,}" for n, c in zip(names, counts, strict=True) if c)
    return [
        f"{len(several):,} of {len(sets):,} entries were merged, of "
        f"{sum(several) / len(several):.1f} tokens on average, {max(several):,} at most",
        f"entries by the tokens they stand for: 1 {len(sets) - len(several):,} · {shown}",
    ]


@dataclass(frozen=True)
class Slice:
    """A stretch of the document: tokens `start` to `end`, and the share of entries kept of it."""

    start: int
    end: int
    share: float


def slices(kept: Sequence[int], tokens: int, per_token: int, cells: int = CELLS) -> list[Slice]:
    """Cut a document into `cells` slices; `kept[t]` are entries kept of token t, of `per_token`."""
    cells = max(min(cells, tokens), 1)
    edges = [tokens * cell // cells for cell in range(cells + 1)]
    return [Slice(a, b, sum(kept[a:b]) / max((b - a) * per_token, 1)) for a, b in pairwise(edges)]


def coverage(
    found: Sequence[Slice], words: Sequence[str], places: Sequence[tuple[str, int]], unicode: bool
) -> list[str]:
    """The strip along the document, its chapters, and the emptiest slices with their first words.

    `places` are names of chapters or pages with the token where each begins.
    """
    most = max(piece.share for piece in found) or 1.0
    cells = [glyph(piece.share / most, unicode) for piece in found]
    full = "█" if unicode else "9"
    lines = [
        f"share of entries kept along the document · {full} = {most:.0%}",
        "".join(cells),
        f"0{f'{found[-1].end:,}':>{max(len(cells) - 1, 1)}}",
    ]
    end = found[-1].end
    ends = [start for _, start in places[1:]] + [end]
    if len(places) > 1:
        shares = [
            _between(found, start, stop) for (_, start), stop in zip(places, ends, strict=True)
        ]
        ranked = sorted(zip(shares, places, strict=True), key=lambda pair: pair[0])
        lines.append("least kept: " + " · ".join(f"{n} {s:.0%}" for s, (n, _) in ranked[:4]))
    emptiest = sorted(range(len(found)), key=lambda index: found[index].share)[:3]
    for index in sorted(emptiest):
        piece = found[index]
        lines.append(
            f"{piece.share:4.0%} of tokens {piece.start:,}–{piece.end:,}: {words[index]} …"
        )
    return lines


def window(parts: Sequence[tuple[str, int]], limit: int, width: int, unicode: bool) -> list[str]:
    """What fills the window: `(name, tokens)` each, and what is free."""
    used = sum(tokens for _, tokens in parts)
    entries = [*parts, ("free", limit - used)]
    name_width = min(max(len(name) for name, _ in entries), 24)
    room = max(width - name_width - 24, 4)
    lines = []
    for name, tokens in entries:
        bar = ("█" if unicode else "#") * round(room * max(tokens, 0) / limit)
        lines.append(f"{name[:name_width]:<{name_width}} {tokens:>9,} {tokens / limit:6.1%}  {bar}")
    return [line.rstrip() for line in lines]


def near(chat: Chat) -> list[int]:
    """Tokens of each file: exact for a single one, else by tokenising each by itself."""
    files, session = chat.book.files, chat.session
    if len(files) == 1:
        lead = len(session.dialogue.document("", chat.book.system))
        return [len(session.document) - lead]
    encode = session.dialogue.tokenizer.encode
    return [len(encode([(f"# {f.title}\n\n{f.text}", False)], continues=True)) for f in files]


def saving(held: int, full: int) -> str:
    """`2.55 GiB saved, 3.9× smaller`."""
    if held >= full:
        return "nothing saved"
    return f"{size(full - held)} saved, {full / max(held, 1):.1f}× smaller"


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
