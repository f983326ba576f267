"""Counting words: there is nothing to find in one place, everything has to be added up."""

from itertools import count as ranks
from itertools import product
from random import Random

from kvchat.eval import world
from kvchat.eval.case import Case, Draw, Question

LONG = 128  # tokens of an answer
ITEM_TOKENS = 7  # of the demo tokenizer, which has a token per digit and made-up letter
COMMON = 10  # words that stand in the list more often than all others
TIMES = 6  # so many times as often
LEAST = 40  # items, however short the document shall be
ASKED = 3  # made-up words
SYLLABLES = ["".join(pair) for pair in product("bdfgklmnprstvz", "aeiou")]


def _plain() -> list[str]:
    """Lower-case words of the world, none of which stands in another."""
    groups = [*world.w.SLOTS.values(), *world.w.VALUES.values()]
    words = sorted({word for group in groups for word in group if word.islower()})
    return [word for word in words if not any(word in other != word for other in words)]


WORDS = _plain()


def common_words(draw: Draw) -> Case:
    """a numbered list of words in which ten stand six times as often as the others"""
    rng = Random(draw.seed)
    items = max(LEAST, draw.tokens // ITEM_TOKENS)
    common = min(COMMON, items // (2 * TIMES))
    once = TIMES * common + len(WORDS) - common  # items if every other word stands there once
    repeats = -(-items // once)
    others = items // repeats - TIMES * common
    words = rng.sample(WORDS, common + others)
    listed = words[:common] * (TIMES * repeats) + words[common:] * repeats
    rng.shuffle(listed)
    return Case(
        "\n".join(f"{number}. {word}" for number, word in enumerate(listed, 1)),
        (
            _asked(
                f"Which {common} words stand in the list most often? Answer with these words only.",
                words[:common],
                "common-words",
            ),
        ),
    )


def frequent_words(draw: Draw) -> Case:
    """made-up words, the k-th of which stands there as often as 1 / (k + 1)² says"""
    rng = Random(draw.seed)
    unit = max(LEAST, draw.tokens // ITEM_TOKENS) / 0.6  # the sum of 1 / (k + 1)² without its tail
    listed: list[str] = []
    words: list[str] = []
    for rank in ranks(1):
        times = int(unit / (rank + 1) ** 2)
        if not times:
            break
        words.append(_made_up(rng, words))
        listed += [words[-1]] * times
    rng.shuffle(listed)
    question = (
        f"Which {ASKED} of these made-up words stand there most often? "
        "Answer with these words only."
    )
    return Case(" ".join(listed), (_asked(question, words[:ASKED], "frequent-words"),))


def _made_up(rng: Random, taken: list[str]) -> str:
    while (word := "".join(rng.choices(SYLLABLES, k=3))) in taken:
        pass
    return word


def _asked(question: str, answers: list[str], kind: str) -> Question:
    return Question(question, tuple(answers), kind, metric="part", longest=LONG)
