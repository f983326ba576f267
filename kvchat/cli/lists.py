"""Lists on the command line: numbers with ranges, as llama-bench writes them, and methods with
their options. Knows no command, imports no torch."""

import re
from collections.abc import Sequence
from typing import TypeVar

from kvchat.cli.flags import number
from kvchat.errors import KvchatError
from kvchat.terminal.text import clean

T = TypeVar("T")
RANGE = re.compile(r"(\w+)-(\w+)(?:([+*])(\w+))?")
MANY = 1000  # numbers of one range


def pieces(given: Sequence[str]) -> list[str]:
    """What stands between the commas of an option that may be repeated."""
    return [text.strip() for item in given for text in item.split(",")]


def once(given: Sequence[T]) -> list[T]:
    """Each of them once, in their order."""
    return list(dict.fromkeys(given))


def counts(name: str, given: Sequence[str] | None, default: list[int], least: int = 1) -> list[int]:
    """Numbers and ranges of a repeated or comma-separated option: `512,4k`, `1k-8k+1k`, `1k-8k*2`.

    A range ends with its last number at most; without a step it goes up by one. Raises
    KvchatError("usage").
    """
    if not given:
        return default
    return [count for text in pieces(given) for count in _range(name, text, least)]


def _range(name: str, text: str, least: int) -> list[int]:
    match = RANGE.fullmatch(text)
    if match is None:
        return [number(name, text, least)]
    first, last = (number(name, match[end], least) for end in (1, 2))
    by = number(name, match[4]) if match[4] else 1
    found = [first]
    if match[3] == "*":
        while by > 1 and 0 < found[-1] * by <= last:
            found.append(found[-1] * by)
    else:
        found = list(range(first, min(last, first + by * MANY) + 1, by))
    if last < first or len(found) > MANY or (match[3] == "*" and (by < 2 or not first)):
        raise KvchatError(
            "usage",
            f"{name} {clean(text)} is no range of 1 to {MANY:,} numbers",
            f"{name} 512-8192*2",
            f"{name} 1024-4096+1024",
        )
    return found


def specs(given: Sequence[str] | None, default: list[str]) -> list[str]:
    """Methods of a repeated or comma-separated option; a piece `k=v` belongs to the one before it.

    `full,adakv:window=16,floor=0.3` are two. Raises KvchatError("usage").
    """
    found: list[str] = []
    for item in given or ():
        begin = len(found)
        for piece in pieces([item]):
            if "=" not in piece.partition(":")[0]:
                found.append(piece)
            elif len(found) > begin:
                found[-1] += f"{',' if ':' in found[-1] else ':'}{piece}"
            else:
                raise KvchatError(
                    "usage",
                    f"--method {clean(item)}: {clean(piece)} has no method before it",
                    f"--method adakv:{clean(piece)}",
                )
    return found or default
