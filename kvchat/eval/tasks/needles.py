"""Needles in a haystack: single sentences with numbers, hidden in prose."""

from itertools import pairwise
from random import Random
from string import ascii_uppercase

from kvchat.eval.case import Case, Draw, Question
from kvchat.eval.tasks.haystack import codes, hidden, joined, most, places, sentences_of

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
        _several(f"What are the {VALUES} magic numbers of {place}?", own, "multi-value")
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
        questions[tuple(sorted(asked))] = _several(question, answers, "multi-query")
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
        _several(
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


def _several(text: str, answers: list[str], kind: str, longest: int = LONG) -> Question:
    return Question(text, tuple(answers), kind, "part", longest=longest)


def _about(place: str, number: str) -> str:
    return f"The magic number of {place} is {number}."


def _what(place: str) -> str:
    return f"What is the magic number of {place}?"


def _numbers(rng: Random, count: int) -> dict[str, str]:
    return dict(zip(places(rng, count), codes(rng, count), strict=True))


def _groups(items: list[str], of: int) -> list[list[str]]:
    return [items[i : i + of] for i in range(0, len(items), of)]
