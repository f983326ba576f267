"""The instrument: tasks hold their answers, intervals are honest, runs resume."""

import json

import pytest

from app.program import kvchat
from kvchat.app.eval.report import FEW, estimate, rows
from kvchat.app.eval.tasks import TASKS, Question


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_a_function_of_its_seed_and_holds_its_answers(name):
    case = TASKS[name](7, 2000, 6)
    assert case == TASKS[name](7, 2000, 6) != TASKS[name](8, 2000, 6)
    assert case.questions
    for question in case.questions:
        assert question.is_right(question.answer)
        assert not question.is_right("I do not know.")
        if name != "world":
            assert all(part in case.document for part in question.answer.split(", "))
        elif question.kind == "answerable":
            assert question.answer.rstrip(".").lower() in case.document.lower()
        else:
            fact = question.answer.partition(" is unknown")[0]
            assert fact.lower() not in case.document.lower()


def test_world_has_a_fifth_of_unanswerable_questions():
    kinds = [question.kind for question in TASKS["world"](1, 4000, 25).questions]
    assert kinds.count("unanswerable") == 5


def test_passkey_walks_through_the_document():
    depths = [TASKS["passkey"](seed, 2000, 1).document.index("The pass key") for seed in range(10)]
    assert depths == sorted(depths) and depths[0] == 0


def test_right_answers_hold_every_part():
    question = Question("?", "12345, 67890", "multi-value")
    assert question.is_right("They are 67890 and 12345.")
    assert not question.is_right("It is 12345.")
    assert not Question("?", "yes", "x", whole=True).is_right("yes and no")


def test_interval_draws_documents_not_questions():
    alike = estimate([[1.0] * 20, [0.0] * 20])  # two documents, whatever their questions
    assert alike.mean == 0.5 and (alike.low, alike.high) == (0.0, 1.0)
    many = estimate([[float(i % 2)] for i in range(400)])
    assert 0.44 < many.low < 0.5 < many.high < 0.56


def _records(cell: str, right: list[bool]) -> list[dict]:
    return [
        {
            "task": "t",
            "length": 1,
            "kind": "k",
            "seen": False,
            "cell": cell,
            "document": number // 5,
            "right": value,
            "kl": 0.1,
            "kept": 1.0,
            "bytes": 10,
        }
        for number, value in enumerate(right)
    ]


@pytest.mark.parametrize(("count", "verdict"), [(FEW - 100, "cannot be told"), (FEW, "")])
def test_few_questions_that_prove_nothing_are_marked(count, verdict):
    half = [i % 2 == 0 for i in range(count)]
    full, cell = rows(_records("full", half) + _records("other", half))
    assert (full.verdict, cell.verdict) == ("", verdict)


def test_a_clear_difference_is_told_with_few_questions():
    table = rows(_records("full", [True] * 50) + _records("other", [False] * 50))
    assert table[1].verdict == ""


def test_a_run_resumes_and_refuses_another_experiment(tmp_path):
    out = tmp_path / "eval"
    arguments = ["--length", "300", "--per-document", "2", "--method", "snapkv"]
    arguments += ["--budget", "50%", "--out", str(out)]
    first = kvchat("eval", *arguments, "--questions", "2")
    assert first.returncode == 0, first.stderr
    answers = (out / "answers.jsonl").read_text()
    records = [json.loads(line) for line in answers.splitlines()]
    assert {(r["cell"], r["seen"]) for r in records} == {
        ("full", False),
        ("snapkv 50%", False),
        ("snapkv 50%", True),
    }
    assert all(r["kl"] == 0 and r["kept"] == 1 for r in records if r["cell"] == "full")
    assert all(r["kl"] >= -1e-6 for r in records)

    more = kvchat("eval", *arguments, "--questions", "4")
    assert more.returncode == 0
    grown = (out / "answers.jsonl").read_text()
    assert grown.startswith(answers) and grown.count("\n") == 2 * answers.count("\n")

    other = kvchat("eval", *arguments, "--questions", "4", "--seed", "9")
    assert other.returncode == 8 and b"seed differ" in other.stderr
    assert (out / "answers.jsonl").read_text() == grown
