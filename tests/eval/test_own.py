"""Facts hidden in one's own texts, and questions with references."""

import json

import pytest

from kvchat.errors import KvchatError
from kvchat.eval.case import Draw
from kvchat.eval.files import load

PROSE = "The tide came in. Nobody spoke! Was it late? They went home and slept until noon. "


def test_facts_stand_in_the_text_where_it_is_said(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text(PROSE * 30)
    task = load(f"facts:{file}")
    case = task(Draw(seed=3, tokens=500, questions=12))
    assert len({q.text for q in case.questions}) == 12
    depths = [q.depth for q in case.questions]
    assert depths == sorted(depths) and all(0 <= depth <= 1 for depth in depths)
    assert all(q.answer in case.document for q in case.questions)
    assert all(q.is_right(f"It is {q.answer}.") for q in case.questions)
    assert not any(q.is_right("nothing") for q in case.questions)
    assert 0.8 < len(case.document) / (500 * 4.4) < 1.2
    assert task(Draw(3, 500, 12)) == case != task(Draw(4, 500, 12))


def test_texts_of_lines_and_their_questions(tmp_path):
    file = tmp_path / "texts.jsonl"
    asked = [{"question": "Who spoke?", "references": ["Nobody did.", "No one."]}]
    file.write_text(json.dumps({"text": PROSE, "questions": asked}) + "\n")
    (case,) = load(f"references:{file}").cases
    (question,) = case.questions
    assert case.document == PROSE and question.metric == "rouge-l"
    assert question.score("nobody did") == 1 and question.score("x") == 0
    assert load(f"facts:{file}")(Draw(1, 50, 2)).questions[0].answer


@pytest.mark.parametrize(
    "line",
    ['{"text": "a"}', '{"text": "a", "questions": [1]}', '{"questions": []}',
     '{"text": "a", "questions": [{"question": "b", "references": [""]}]}',
     '{"text": "a", "questions": [{"question": "b", "references": []}]}'],
)  # fmt: skip
def test_lines_that_are_none(tmp_path, line):
    file = tmp_path / "x.jsonl"
    file.write_text(line)
    with pytest.raises(KvchatError) as refused:
        load(f"references:{file}")
    assert refused.value.code == "input"
