"""Passages of documents by the words in them."""

import re
from collections.abc import Sequence
from math import log

WORDS = re.compile(r"\w+")
LEAST = 0.5  # of the words' worth that a passage must have


def search(texts: Sequence[str], wanted: str) -> list[int]:
    """The numbers of the texts that have the wanted words, best first.

    One that has all of it as it stands comes first, then those with most of its words; a rare word
    counts more than a common one, and of equal texts the first comes first. Letters count, not
    their case; a word also matches the beginning of a longer one.
    """
    phrase = " ".join(wanted.casefold().split())
    words = list(dict.fromkeys(WORDS.findall(phrase)))
    if not words:
        return []
    folded = [" ".join(text.casefold().split()) for text in texts]
    forms = [re.compile(rf"\b{re.escape(word)}") for word in words]
    found = [[bool(form.search(text)) for form in forms] for text in folded]
    counts = [sum(each[number] for each in found) for number in range(len(words))]
    worth = [log(1 + len(texts) / count) if count else 0.0 for count in counts]
    total = sum(worth)
    ranks = {}
    for number, (text, has) in enumerate(zip(folded, found, strict=True)):
        score = sum(value for value, there in zip(worth, has, strict=True) if there)
        if total and score >= LEAST * total:
            ranks[number] = score + total * (phrase in text)
    return sorted(ranks, key=lambda number: -ranks[number])
