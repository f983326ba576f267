"""Documents with questions, made from seeds. A task is a function of a seed and a length.

`world` speaks the demo model's language; the others are plain English for any chat model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from kvchat.app.eval import world

UNKNOWN_SHARE = 0.2
CODE_DIGITS = 5


@dataclass(frozen=True)
class Question:
    """A question, what a right answer holds, and whether it must be the whole answer."""

    text: str
    answer: str
    kind: str
    whole: bool = False

    def is_right(self, given: str) -> bool:
        """Whether `given` answers the question."""
        if self.whole:
            return given.strip() == self.answer
        return all(part in given for part in self.answer.split(", "))


@dataclass(frozen=True)
class Case:
    """A document and the questions about it."""

    document: str
    questions: tuple[Question, ...]


Task = Callable[[int, int, int], Case]


def about_the_world(seed: int, tokens: int, count: int) -> Case:
    """questions about people of the demo world, a fifth of them unanswerable"""
    rng = Random(seed)
    document = world.document(world.HELD_OUT + seed, tokens)
    questions = []
    for number in range(count):
        unknown = number < round(UNKNOWN_SHARE * count)
        asked, answer, _ = world.ask(document, rng, unknown=float(unknown))
        kind = "unanswerable" if unknown else "answerable"
        questions.append(Question(world.text(asked), world.text(answer), kind, whole=True))
    return Case(world.text(document.ids), tuple(questions))


def needle(seed: int, tokens: int, count: int) -> Case:
    """one sentence with a number in a haystack of prose"""
    rng = Random(seed)
    place, number = _place(rng), _code(rng)
    sentence = f"The magic number of {place} is {number}."
    text = _haystack(rng, tokens, [sentence])
    return Case(text, (Question(f"What is the magic number of {place}?", number, "needle"),))


def multi_key(seed: int, tokens: int, count: int) -> Case:
    """many such sentences about different places; each question asks for one"""
    rng = Random(seed)
    numbers = {_place(rng): _code(rng) for _ in range(2 * count)}
    sentences = [f"The magic number of {place} is {code}." for place, code in numbers.items()]
    asked = rng.sample(list(numbers), min(count, len(numbers)))
    return Case(
        _haystack(rng, tokens, sentences),
        tuple(
            Question(f"What is the magic number of {place}?", numbers[place], "multi-key")
            for place in asked
        ),
    )


def multi_value(seed: int, tokens: int, count: int) -> Case:
    """three numbers for each place; a right answer has all of them"""
    rng = Random(seed)
    numbers = {_place(rng): [_code(rng) for _ in range(3)] for _ in range(count)}
    sentences = [
        f"One of the magic numbers of {place} is {code}."
        for place, codes in numbers.items()
        for code in codes
    ]
    return Case(
        _haystack(rng, tokens, sentences),
        tuple(
            Question(f"What are the magic numbers of {place}?", ", ".join(codes), "multi-value")
            for place, codes in numbers.items()
        ),
    )


def key_value(seed: int, tokens: int, count: int) -> Case:
    """a list of random keys and values that fills the document"""
    rng = Random(seed)
    pairs = {_code(rng): _code(rng) for _ in range(max(count, tokens // 24))}
    lines = [f"The value of key {key} is {value}." for key, value in pairs.items()]
    asked = rng.sample(list(pairs), min(count, len(pairs)))
    return Case(
        "\n".join(lines),
        tuple(Question(f"What is the value of key {k}?", pairs[k], "key-value") for k in asked),
    )


def passkey(seed: int, tokens: int, count: int) -> Case:
    """one pass key at a depth that the seed moves through the document"""
    rng = Random(seed)
    code, depth = _code(rng), (seed % 10) / 9
    sentences = _filler(rng, tokens)
    at = round(depth * len(sentences))
    text = " ".join([*sentences[:at], f"The pass key is {code}. Remember it.", *sentences[at:]])
    return Case(text, (Question("What is the pass key?", code, f"depth {depth:.0%}"),))


TASKS: dict[str, Task] = {
    "world": about_the_world,
    "needle": needle,
    "multi-key": multi_key,
    "multi-value": multi_value,
    "key-value": key_value,
    "passkey": passkey,
}


def _filler(rng: Random, tokens: int) -> list[str]:
    """Sentences of prose, about `tokens` tokens of the demo tokenizer."""
    sentences, length = [], 0
    while length < tokens:
        ids = world.fill(rng.choice(world.PLAIN_FILLER), rng)
        sentences.append(world.text(ids).strip())
        length += len(ids)
    return sentences


def _haystack(rng: Random, tokens: int, needles: list[str]) -> str:
    sentences = _filler(rng, tokens - 20 * len(needles))
    for sentence in needles:
        sentences.insert(rng.randint(0, len(sentences)), sentence)
    return " ".join(sentences)


def _place(rng: Random) -> str:
    """A town of the world with a number, so that there are enough of them."""
    return f"{rng.choice(world.w.VALUES['home'])} {rng.randint(10, 99)}"


def _code(rng: Random) -> str:
    return "".join(rng.choices("0123456789", k=CODE_DIGITS))
