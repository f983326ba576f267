"""Needles in a haystack: single sentences with numbers, hidden in prose that says nothing."""

from collections.abc import Sequence
from itertools import pairwise
from random import Random
from string import ascii_uppercase

from kvchat.eval import words, world
from kvchat.eval.case import Case, Draw, Question

DIGITS = 6
NEEDLE_TOKENS = 24  # of a sentence with a name and a number; one character each in digits
ROOM = 0.6  # of the document that needles may take
VALUES = 3  # numbers of a place in multi-value
ASKED = 4  # places in one question of multi-query
HOPS = 4  # from the first variable of a chain, which is given the value, to the last
LETTERS = 5  # of a variable's name
LONG = 128  # tokens of an answer with several numbers
NAMES = 64  # tokens of an answer with the names of variables


def needle(draw: Draw) -> Case:
    """One sentence with a number in a haystack of prose, as deep as the draw says."""
    rng = Random(draw.seed)
    (place,), (number,) = places(rng, 1), codes(rng, 1)
    question = Question(_what(place), (number,), "needle", depth=draw.depth)
    return _single(rng, draw, _about(place, number), question)


def passkey(draw: Draw) -> Case:
    """One pass key, which the document says to remember, as deep as the draw says."""
    rng = Random(draw.seed)
    (number,) = codes(rng, 1)
    question = Question("What is the pass key?", (number,), "passkey", depth=draw.depth)
    return _single(rng, draw, f"The pass key is {number}. Remember it.", question)


def multi_key(draw: Draw) -> Case:
    """Many such sentences about different places; each question asks for one."""
    rng = Random(draw.seed)
    numbers = _numbers(rng, most(draw.tokens, 2 * draw.questions, least=2))
    text, depths = hidden(rng, draw.tokens, [_about(p, n) for p, n in numbers.items()])
    depth = dict(zip(numbers, depths, strict=True))
    asked = rng.sample(list(numbers), min(draw.questions, len(numbers)))
    questions = (
        Question(_what(place), (numbers[place],), "multi-key", depth=depth[place])
        for place in asked
    )
    return Case(text, tuple(questions))


def multi_value(draw: Draw) -> Case:
    """Three numbers for each place; a question asks for all of them."""
    rng = Random(draw.seed)
    count = most(draw.tokens // VALUES, draw.questions)
    names = places(rng, count)
    numbers = dict(zip(names, _groups(codes(rng, VALUES * count), VALUES), strict=True))
    needles = [
        f"One of the magic numbers of {place} is {code}."
        for place, own in numbers.items()
        for code in own
    ]
    rng.shuffle(needles)
    text, _ = hidden(rng, draw.tokens, needles)
    questions = (
        several(f"What are the {VALUES} magic numbers of {place}?", own, "multi-value")
        for place, own in numbers.items()
    )
    return Case(text, tuple(questions))


def multi_query(draw: Draw) -> Case:
    """One number for each place; a question asks for those of four places at once."""
    rng = Random(draw.seed)
    numbers = _numbers(rng, most(draw.tokens, max(2 * ASKED, 2 * draw.questions), least=ASKED))
    text, _ = hidden(rng, draw.tokens, [_about(p, n) for p, n in numbers.items()])
    questions: dict[tuple[str, ...], Question] = {}
    for _ in range(draw.questions):
        asked = rng.sample(list(numbers), ASKED)
        question = f"What are the magic numbers of {', '.join(asked[:-1])} and {asked[-1]}?"
        answers = [numbers[place] for place in asked]
        questions[tuple(sorted(asked))] = several(question, answers, "multi-query")
    return Case(text, tuple(questions.values()))


def variables(draw: Draw) -> Case:
    """Chains of assignments in prose; a question asks for all names with one value."""
    rng = Random(draw.seed)
    count = most(draw.tokens // (HOPS + 1), max(2, draw.questions), least=2)
    names: dict[str, None] = {}
    while len(names) < count * (HOPS + 1):
        names["".join(rng.choices(ascii_uppercase, k=LETTERS))] = None
    chains = _groups(list(names), HOPS + 1)
    values = codes(rng, count)
    text, _ = hidden(rng, draw.tokens, _interleaved(rng, chains, values))
    questions = (
        several(
            f"Which variables have the value {value}? Name all {len(chain)} of them.",
            chain,
            "variable-tracking",
            NAMES,
        )
        for chain, value in zip(chains, values, strict=True)
    )
    return Case(text, tuple(questions)[: draw.questions])


def _interleaved(rng: Random, chains: list[list[str]], values: list[str]) -> list[str]:
    """The assignments of all chains, mixed, each after the one it builds on."""
    told = [
        [
            f"Variable {chain[0]} is {value}.",
            *(f"Variable {b} is the same as {a}." for a, b in pairwise(chain)),
        ]
        for chain, value in zip(chains, values, strict=True)
    ]
    order = [number for number, chain in enumerate(told) for _ in chain]
    rng.shuffle(order)
    left = [iter(chain) for chain in told]
    return [next(left[number]) for number in order]


def _single(rng: Random, draw: Draw, sentence: str, question: Question) -> Case:
    prose = sentences_of(rng, draw.tokens)
    text, _ = joined(prose, [sentence], [round(draw.depth * len(prose))])
    return Case(text, (question,))


def several(text: str, answers: list[str], kind: str, longest: int = LONG) -> Question:
    """A question for all of the answers; each found is worth its share."""
    return Question(text, tuple(answers), kind, "part", longest=longest)


def _about(place: str, number: str) -> str:
    return f"The magic number of {place} is {number}."


def _what(place: str) -> str:
    return f"What is the magic number of {place}?"


def _numbers(rng: Random, count: int) -> dict[str, str]:
    return dict(zip(places(rng, count), codes(rng, count), strict=True))


def _groups(items: list[str], of: int) -> list[list[str]]:
    return [items[i : i + of] for i in range(0, len(items), of)]


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
