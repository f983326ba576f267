"""Prose that says nothing, and sentences hidden in it."""

from collections.abc import Sequence
from random import Random

from kvchat.eval import words, world

DIGITS = 6
NEEDLE_TOKENS = 24  # of a sentence with a name and a number; one character each in digits
ROOM = 0.6  # of the document that needles may take


def sentences_of(rng: Random, tokens: int) -> list[str]:
    """Sentences of prose, about `tokens` tokens of the demo tokenizer."""
    sentences, length = [], 0
    while length < tokens:
        ids = world.fill(rng.choice(world.PLAIN_FILLER), rng)
        sentences.append(world.text(ids).strip())
        length += len(ids)
    return sentences


def hidden(rng: Random, tokens: int, needles: Sequence[str]) -> tuple[str, list[float]]:
    """Prose with the needles in it, in their order at random places, and how deep each begins."""
    prose = sentences_of(rng, tokens - NEEDLE_TOKENS * len(needles))
    return joined(prose, needles, sorted(rng.randint(0, len(prose)) for _ in needles))


def joined(
    prose: Sequence[str], needles: Sequence[str], places: Sequence[int]
) -> tuple[str, list[float]]:
    """One text with each needle before the sentence of its place (ascending), and their depths.

    A depth is the share of the text's characters before the needle, of those without it: 0 in
    front of everything, 1 behind.
    """
    parts: list[str] = []
    starts, length, done = [], 0, 0
    for needle, place in zip(needles, places, strict=True):
        between = prose[done:place]
        length += sum(len(part) + 1 for part in between)
        parts += [*between, needle]
        starts.append((length, len(needle) + 1))
        length += len(needle) + 1
        done = place
    parts += prose[done:]
    text = " ".join(parts)
    depths = [round(start / max(1, len(text) + 1 - own), 4) for start, own in starts]
    return text, depths


def most(tokens: int, wanted: int, least: int = 1) -> int:
    """How many of the wanted needles a document has room for, `least` whatever its length."""
    return max(least, min(wanted, int(ROOM * tokens / NEEDLE_TOKENS)))


def places(rng: Random, count: int) -> list[str]:
    """Different towns of the world, with a number so that there are enough of them."""
    names = words.VALUES["home"]
    drawn = rng.sample(range(max(90, count) * len(names)), count)
    return [f"{names[i % len(names)]} {10 + i // len(names)}" for i in drawn]


def codes(rng: Random, count: int) -> list[str]:
    """Different numbers of DIGITS digits."""
    return [str(n) for n in rng.sample(range(10 ** (DIGITS - 1), 10**DIGITS), count)]
