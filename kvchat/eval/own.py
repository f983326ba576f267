"""Documents of one's own: facts hidden in their text, and questions with references."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from kvchat.errors import KvchatError
from kvchat.eval.case import Case, Draw, Given, Question
from kvchat.eval.lines import content, lines
from kvchat.eval.tasks.needles import joined
from kvchat.terminal.text import clean

SENTENCE = re.compile(r"(?<=[.!?])\s+")
MOST = 500  # facts of a document: there are some 1,100 that differ
CHARACTERS = 4.4  # of a token of prose, about; lengths are made to fit afterwards
SHORT, LONG = 24, 64  # tokens of an answer: a fact; some sentences

FIRST = "Amalia Benno Clarice Dorian Elif Fabian Gwen Henrik Imogen Jasper Katja Lorenz Maren Niko"
LAST = "Abbot Bellini Corwin Drake Elster Frey Grimaldi Hale Iversen Jansen Kerr Lomax Marchetti"
CITIES = "Aarhus Bilbao Cork Dresden Esbjerg Faro Genoa Halifax Innsbruck Jena Kaunas Lugano Namur"
TRADES = "baker cooper dentist engraver farrier glazier hatter joiner miller notary printer tailor"
ROOMS = "attic barn cellar chapel dairy forge granary laundry mill pantry stable tannery vault"

Fact = tuple[str, str, str]  # a sentence, what asks for it, the answer


@dataclass(frozen=True)
class Hidden:
    """A task: a piece of one of several texts, with facts between its sentences."""

    texts: tuple[tuple[str, ...], ...]  # sentences

    def __call__(self, draw: Draw) -> Case:
        """Each question asks for one fact; all stand at places that the seed draws."""
        rng = Random(draw.seed)
        sentences = rng.choice(self.texts)
        told = facts(rng, min(draw.questions, MOST))
        left = draw.tokens * CHARACTERS - sum(len(sentence) + 1 for sentence, _, _ in told)
        at, prose = rng.randrange(len(sentences)), list[str]()
        while left > 0:
            prose.append(sentences[at % len(sentences)])
            left -= len(prose[-1]) + 1
            at += 1
        places = sorted(rng.randint(0, len(prose)) for _ in told)
        text, depths = joined(prose, [sentence for sentence, _, _ in told], places)
        questions = (
            Question(asked, (answer,), "facts", depth=depth, longest=SHORT, fact=sentence)
            for (sentence, asked, answer), depth in zip(told, depths, strict=True)
        )
        return Case(text, tuple(questions))


def facts(rng: Random, count: int) -> list[Fact]:
    """Different facts with names, numbers and places that no text knows."""
    found: dict[str, Fact] = {}
    while len(found) < count:
        fact = rng.choice(FORMS)(rng)
        found.setdefault(fact[1], fact)
    return list(found.values())


def _person(rng: Random) -> str:
    return f"{rng.choice(FIRST.split())} {rng.choice(LAST.split())}"


def _code(rng: Random) -> Fact:
    room, code = rng.choice(ROOMS.split()), str(rng.randrange(10_000, 100_000))
    number = rng.randrange(2, 40)
    return (
        f"The lock of {room} {number} opens with the number {code}.",
        f"With which number does the lock of {room} {number} open?",
        code,
    )


def _town(rng: Random) -> Fact:
    who, city = _person(rng), rng.choice(CITIES.split())
    return f"{who} grew up in {city}.", f"Where did {who} grow up?", city


def _trade(rng: Random) -> Fact:
    who, trade = _person(rng), rng.choice(TRADES.split())
    return f"{who} earns a living as a {trade}.", f"How does {who} earn a living?", trade


def _count(rng: Random) -> Fact:
    who, number = _person(rng), str(rng.randrange(12, 99))
    return (
        f"{who} owns {number} clocks.",
        f"How many clocks does {who} own?",
        number,
    )


def _friend(rng: Random) -> Fact:
    who, other = _person(rng), _person(rng)
    return f"The best friend of {who} is {other}.", f"Who is the best friend of {who}?", other


FORMS: tuple[Callable[[Random], Fact], ...] = (_code, _town, _trade, _count, _friend)


def hidden(path: Path) -> Hidden:
    """Texts of a file: lines with `text` (.jsonl), or one text. Raises KvchatError("input")."""
    jsonl = path.suffix == ".jsonl"
    texts = [line.text("text") for line in lines(path)] if jsonl else [content(path)]
    split = (tuple(filter(str.strip, SENTENCE.split(text))) for text in texts)
    found = tuple(sentences for sentences in split if sentences)
    if not found:
        raise KvchatError("input", f"{clean(str(path))} has no text")
    return Hidden(found)


def referenced(path: Path) -> Given:
    """Lines with `text` and `questions`, each with `question` and `references`.

    An answer is scored by ROUGE-L against the best of its references. Raises KvchatError("input").
    """
    cases = []
    for line in lines(path):
        asked = line.fields.get("questions")
        if not isinstance(asked, list) or not asked:
            raise line.error("'questions' is no list, or an empty one")
        questions = []
        for each in asked:
            given = each if isinstance(each, dict) else {}
            text, references = given.get("question"), given.get("references")
            listed = references if isinstance(references, list) else []
            good = listed and all(isinstance(each, str) and each for each in listed)
            if not isinstance(text, str) or not good:
                raise line.error("a question without 'question' or 'references'")
            questions.append(Question(text, tuple(listed), "references", "rouge-l", longest=LONG))
        cases.append(Case(line.text("text"), tuple(questions)))
    return Given(tuple(cases))
