"""Needles in a haystack: single sentences with numbers, hidden in prose."""

from random import Random

from kvchat.eval.case import Case, Draw, Question
from kvchat.eval.tasks.haystack import (
    codes,
    hidden,
    joined,
    most,
    places,
    sentences_of,
)

VALUES = 3  # numbers of a place in multi-value
ASKED = 4  # places in one question of multi-query
LONG = 128  # tokens of an answer with several numbers


def needle(draw: Draw) -> Case:
    """one sentence with a number in a haystack of prose, as deep as the draw says"""
    rng = Random(draw.seed)
    (place,), (number,) = places(rng, 1), codes(rng, 1)
    sentence = f"The magic number of {place} is {number}."
    return _single(rng, draw, sentence, f"What is the magic number of {place}?", number, "needle")


def passkey(draw: Draw) -> Case:
    """one pass key, which the document says to remember, as deep as the draw says"""
    rng = Random(draw.seed)
    (number,) = codes(rng, 1)
    sentence = f"The pass key is {number}. Remember it."
    return _single(rng, draw, sentence, "What is the pass key?", number, "passkey")


def multi_key(draw: Draw) -> Case:
    """many such sentences about different places; each question asks for one"""
    rng = Random(draw.seed)
    numbers = _numbers(rng, most(draw.tokens, 2 * draw.questions, least=2))
    text, depths = hidden(rng, draw.tokens, [_about(p, n) for p, n in numbers.items()])
    depth = dict(zip(numbers, depths, strict=True))
    asked = rng.sample(list(numbers), min(draw.questions, len(numbers)))
    return Case(
        text,
        tuple(
            Question(
                f"What is the magic number of {place}?",
                (numbers[place],),
                "multi-key",
                depth=depth[place],
            )
            for place in asked
        ),
    )


def multi_value(draw: Draw) -> Case:
    """three numbers for each place; a question asks for all of them"""
    rng = Random(draw.seed)
    count = most(draw.tokens // VALUES, draw.questions)
    numbers = dict(zip(places(rng, count), _groups(codes(rng, VALUES * count)), strict=True))
    needles = [
        f"One of the magic numbers of {place} is {code}."
        for place, own in numbers.items()
        for code in own
    ]
    rng.shuffle(needles)
    text, _ = hidden(rng, draw.tokens, needles)
    return Case(
        text,
        tuple(
            Question(
                f"What are the {VALUES} magic numbers of {place}?",
                tuple(own),
                "multi-value",
                metric="part",
                longest=LONG,
            )
            for place, own in numbers.items()
        ),
    )


def multi_query(draw: Draw) -> Case:
    """one number for each place; a question asks for those of four places at once"""
    rng = Random(draw.seed)
    numbers = _numbers(rng, most(draw.tokens, max(2 * ASKED, 2 * draw.questions), least=ASKED))
    text, _ = hidden(rng, draw.tokens, [_about(p, n) for p, n in numbers.items()])
    questions: dict[tuple[str, ...], Question] = {}
    for _ in range(draw.questions):
        asked = rng.sample(list(numbers), ASKED)
        names = ", ".join(asked[:-1]) + f" and {asked[-1]}"
        questions[tuple(sorted(asked))] = Question(
            f"What are the magic numbers of {names}?",
            tuple(numbers[place] for place in asked),
            "multi-query",
            metric="part",
            longest=LONG,
        )
    return Case(text, tuple(questions.values()))


def _about(place: str, number: str) -> str:
    return f"The magic number of {place} is {number}."


def _numbers(rng: Random, count: int) -> dict[str, str]:
    return dict(zip(places(rng, count), codes(rng, count), strict=True))


def _groups(numbers: list[str]) -> list[list[str]]:
    return [numbers[i : i + VALUES] for i in range(0, len(numbers), VALUES)]


def _single(rng: Random, draw: Draw, sentence: str, question: str, answer: str, kind: str) -> Case:
    prose = sentences_of(rng, draw.tokens)
    text, _ = joined(prose, [sentence], [round(draw.depth * len(prose))])
    return Case(text, (Question(question, (answer,), kind, depth=draw.depth),))
