"""Lists: words to count, and pairs that no language model can guess."""

from itertools import count as ranks
from itertools import product
from random import Random

from kvchat.eval import words
from kvchat.eval.case import Case, Draw, Question
from kvchat.eval.tasks.needles import codes, several

PAIR_TOKENS = 24  # of the demo tokenizer, which has a token per digit
ITEM_TOKENS = 7  # of a list's item or a made-up word, which has a token per letter
COMMON = 10  # words that stand in the list more often than all others
TIMES = 6  # so many times as often
LEAST = 40  # items, however short the document shall be
ASKED = 3  # made-up words
SYLLABLES = ["".join(pair) for pair in product("bdfgklmnprstvz", "aeiou")]


def _plain() -> list[str]:
    """Lower-case words of the world, none of which is a part of another."""
    groups = [*words.SLOTS.values(), *words.VALUES.values()]
    found = sorted({word for group in groups for word in group if word.islower()})
    return [word for word in found if not any(word in other != word for other in found)]


WORDS = _plain()


def key_value(draw: Draw) -> Case:
    """A list of random keys and values that fills the document."""
    rng = Random(draw.seed)
    count = max(1, draw.tokens // PAIR_TOKENS)
    keys, values = codes(rng, count), codes(rng, count)
    lines = [f"The value of key {k} is {v}." for k, v in zip(keys, values, strict=True)]
    questions = (
        Question(
            f"What is the value of key {keys[at]}?",
            (values[at],),
            "key-value",
            depth=round(at / max(1, count - 1), 4),
        )
        for at in rng.sample(range(count), min(draw.questions, count))
    )
    return Case("\n".join(lines), tuple(questions))


def common_words(draw: Draw) -> Case:
    """A numbered list of words in which ten are six times as frequent as the others."""
    rng = Random(draw.seed)
    items = max(LEAST, draw.tokens // ITEM_TOKENS)
    common = min(COMMON, items // (2 * TIMES))
    once = TIMES * common + len(WORDS) - common  # items if every other word is there once
    repeats = -(-items // once)
    others = items // repeats - TIMES * common
    drawn = rng.sample(WORDS, common + others)
    listed = drawn[:common] * (TIMES * repeats) + drawn[common:] * repeats
    rng.shuffle(listed)
    question = f"Which {common} words stand in the list most often? Answer with these words only."
    text = "\n".join(f"{number}. {word}" for number, word in enumerate(listed, 1))
    return Case(text, (several(question, drawn[:common], "common-words"),))


def frequent_words(draw: Draw) -> Case:
    """Made-up words, the k-th of which is as frequent as 1 / (k + 1)² says."""
    rng = Random(draw.seed)
    unit = max(LEAST, draw.tokens // ITEM_TOKENS) / 0.6  # the sum of 1 / (k + 1)² without its tail
    listed: list[str] = []
    made: list[str] = []
    for rank in ranks(1):
        times = int(unit / (rank + 1) ** 2)
        if not times:
            break
        made.append(_made_up(rng, made))
        listed += [made[-1]] * times
    rng.shuffle(listed)
    question = (
        f"Which {ASKED} of these made-up words stand there most often? "
        "Answer with these words only."
    )
    return Case(" ".join(listed), (several(question, made[:ASKED], "frequent-words"),))


def _made_up(rng: Random, taken: list[str]) -> str:
    while (word := "".join(rng.choices(SYLLABLES, k=3))) in taken:
        pass
    return word
