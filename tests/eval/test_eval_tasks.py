"""Tasks made from seeds: what is asked follows from the document, found by reading it anew."""

import re
from collections import Counter
from random import Random

import pytest

from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.errors import KvchatError
from kvchat.eval.case import Draw
from kvchat.eval.sources import Source
from kvchat.eval.tasks import TASKS
from kvchat.eval.tasks.lists import WORDS

LENGTHS = (60, 300, 1000, 4000)
UNKNOWN = "is unknown"


def sets(pairs):
    found: dict[str, set[str]] = {}
    for key, value in pairs:
        found.setdefault(key, set()).add(value)
    return found


def by_place(document, question):
    numbers = sets(re.findall(r"magic numbers? of (\w+ \d+) is (\d+)\.", document))
    return set().union(*(numbers[place] for place in re.findall(r"[A-Z]\w+ \d\d", question)))


def by_key(document, question):
    pairs = dict(re.findall(r"value of key (\d+) is (\d+)\.", document))
    return {pairs[re.search(r"\d+", question)[0]]}


def by_chain(document, question):
    """Every name is worth what was last said of it, and copies come after what they copy."""
    worth: dict[str, str] = {}
    for name, same, value in re.findall(
        r"Variable ([A-Z]{5}) is (?:the same as ([A-Z]{5})|(\d+))\.", document
    ):
        assert name not in worth
        worth[name] = value or worth[same]
    wanted = re.search(r"\d{6}", question)[0]
    return {name for name, value in worth.items() if value == wanted}


def most_frequent(document, question):
    ranked = Counter(re.findall(r"\b[a-z]+\b", document)).most_common()
    count = int(re.search(r"\d+", question)[0])
    assert len(ranked) == count or ranked[count - 1][1] > ranked[count][1], "a tie"
    return {word for word, _ in ranked[:count]}


def by_fact(document, question):
    """The demo world: who is asked about, looked up in all sentences of the form of a fact."""
    facts = re.findall(r"[Tt]he (\w+) of (\w+ \w+) is (\w+)", document)
    ((relation, person),) = re.findall(r"(\w+) of (\w+ \w+)[.?]$", question)
    told = [value for r, p, value in facts if (r, p) == (relation, person)]
    if not told:
        return {f"The {relation} of {person} {UNKNOWN}. The document does not say."}
    return {f"The {relation} of {person} is {told[0]}."}


SOLVERS = {
    "world": by_fact,
    "needle": by_place,
    "multi-key": by_place,
    "multi-value": by_place,
    "multi-query": by_place,
    "key-value": by_key,
    "variable-tracking": by_chain,
    "passkey": lambda document, _: set(re.findall(r"pass key is (\d+)\.", document)),
    "common-words": most_frequent,
    "frequent-words": most_frequent,
}


@pytest.mark.parametrize("name", TASKS)
def test_answers_follow_from_the_document(name):
    rng = Random(name)
    for length in LENGTHS:
        draw = Draw(rng.randrange(10**9), length, rng.randint(1, 12), rng.random())
        case = TASKS[name](draw)
        assert case == TASKS[name](draw) != TASKS[name](Draw(draw.seed + 1, length))
        assert 0 < len(case.questions) <= draw.questions
        if name != "world":  # which asks as a person may, twice the same
            assert len({question.text for question in case.questions}) == len(case.questions)
        for question in case.questions:
            assert set(question.answers) == SOLVERS[name](case.document, question.text), question
            assert question.is_right(f"{question.answer}") and question.score("No idea.") == 0


@pytest.mark.parametrize("name", ["needle", "passkey"])
@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_a_needle_is_as_deep_as_it_is_told_to_be(name, depth):
    case = TASKS[name](Draw(5, 3000, depth=depth))
    (question,) = case.questions
    at = case.document.index(question.answer)
    assert question.depth == depth
    assert at / len(case.document) == pytest.approx(depth, abs=0.03)


@pytest.mark.parametrize("name", ["world", "multi-key", "key-value"])
def test_a_question_knows_how_deep_its_answer_is(name):
    case = TASKS[name](Draw(6, 4000, 10))
    told = [question for question in case.questions if question.depth is not None]
    assert len(case.questions) - len(told) == 2 * (name == "world")  # a fifth is not there
    kinds = {
        (question.kind == "unanswerable", question.depth is None) for question in case.questions
    }
    assert kinds <= {(True, True), (False, False)}
    for question in told:
        words = question.answer.removeprefix("The ").removesuffix(".")
        at = case.document.index(words) / len(case.document)
        assert at == pytest.approx(question.depth, abs=0.02)


def test_no_counted_word_stands_in_another():
    assert len(WORDS) > 300
    assert not [(a, b) for a in WORDS for b in WORDS if a != b and a in b]


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_documents_have_the_wanted_tokens_in_any_tokenizer_and_walk_through_the_depths(
    tokenizer_folder, kind
):
    dialogue = Dialogue(Tokenizer.load(tokenizer_folder(kind)))
    for name in TASKS:
        made = Source(name, 5, 1, task=TASKS[name])
        tokens = len(dialogue.document(made.case(dialogue, 1500, 0).document))
        assert 0.9 * 1500 <= tokens <= 1.05 * 1500, name
    needles = Source("needle", 5, 1, depths=(0.0, 0.5, 1.0), task=TASKS["needle"])
    depths = [needles.case(dialogue, 400, n).questions[0].depth for n in range(6)]
    assert depths == [0.0, 0.5, 1.0] * 2


def test_a_document_too_short_for_anybody_is_refused():
    with pytest.raises(KvchatError) as caught:
        TASKS["world"](Draw(0, 5, 3, 0.5))
    assert caught.value.code == "usage" and "--length 256" in caught.value.tries
    assert TASKS["world"](Draw(0, 256, 3, 0.5)).questions
