"""Kinds of lists, given with commas or by repeating a flag: numbers with ranges, as llama-bench
writes them, words, and methods with their options."""

import re
from collections.abc import Callable, Sequence

from kvchat.settings.kinds import Kind, tokens

RANGE = re.compile(r"(\w+)-(\w+)(?:([+*])(\w+))?")
MANY = 1000  # numbers of one range


def pieces(given: Sequence[str]) -> list[str]:
    """What stands between the commas of all texts, each once, in their order."""
    return list(dict.fromkeys(text.strip() for item in given for text in item.split(",")))


def counts(least: int = 1, most: int = 10**12) -> Kind:
    """Numbers and ranges, each once: `512,4k`, `1k-8k` (by one), `1k-8k+1k`, `1k-8k*2`.

    A range ends with its last number at most.
    """
    parse = tokens(least).parse

    def all_of(given: Sequence[str]) -> list[int]:
        found = [count for text in pieces(given) for count in _range(text, parse)]
        if max(found) > most:
            raise ValueError
        return list(dict.fromkeys(found))

    bounds = f"{least:,} or more" if most == 10**12 else f"{least:,} to {most:,}"
    meaning = f"numbers of {bounds} (512,4k, 1024-4096+1024, 512-8192*2)"
    return Kind(meaning, all_of, "N,…", listed=True)


def _range(text: str, parse: Callable[[str], int]) -> list[int]:
    match = RANGE.fullmatch(text)
    if match is None:
        return [parse(text)]
    first, last = parse(match[1]), parse(match[2])
    by = tokens().parse(match[4]) if match[4] else 1
    found = [first]
    if match[3] == "*":
        while by > 1 and 0 < found[-1] * by <= last:
            found.append(found[-1] * by)
    else:
        found = list(range(first, min(last, first + by * MANY) + 1, by))
    if last < first or len(found) > MANY or (match[3] == "*" and (by < 2 or not first)):
        raise ValueError
    return found


def specs(given: Sequence[str]) -> list[str]:
    """Methods; a piece `k=v` belongs to the one before it in the same text.

    `full,adakv:window=16,floor=0.3` are two. Raises ValueError for a piece without a method.
    """
    found: list[str] = []
    for item in given:
        begin = len(found)
        for piece in (text.strip() for text in item.split(",")):
            if "=" not in piece.partition(":")[0]:
                found.append(piece)
            elif len(found) > begin:
                found[-1] += f"{',' if ':' in found[-1] else ':'}{piece}"
            else:
                raise ValueError
    return found


WORDS = Kind("words with commas between", pieces, "NAME,…", listed=True)
METHOD_SPECS = Kind("methods with their options (full,adakv:window=16)", specs, listed=True)
