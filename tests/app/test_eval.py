"""The instrument: tasks hold their answers, intervals are honest, runs resume."""

import json

import pytest

from app.program import kvchat
from kvchat.app.eval.claims import claims
from kvchat.app.eval.markdown import claim_table, tables
from kvchat.app.eval.report import CANNOT, FEW, estimate, rows
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
            "question": number,
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


def _paired(cell: str, right: list[bool], kl: float, seen: bool = False) -> list[dict]:
    """Records of ten documents, the same answers about each."""
    return [
        record | {"document": document, "kl": kl, "seen": seen}
        for document in range(10)
        for record in _records(cell, right)
    ]


def test_claims_are_paired_differences():
    """Better in one question of four, everywhere: that holds, the other way round it does not."""
    better, worse = [True, True, True, False], [True, True, False, False]
    records = _paired("adakv 25%", better, 0.1) + _paired("snapkv 25%", worse, 0.3)
    (claim,) = claims(records)
    assert (claim.better, claim.worse, claim.budget, claim.questions) == (
        "adakv",
        "snapkv",
        "25%",
        40,
    )
    assert claim.right.mean == pytest.approx(0.25) and claim.verdict == "holds here"
    assert claim.kl.mean == pytest.approx(-0.2) and claim.kl_verdict == "holds here"
    turned = _paired("adakv 25%", worse, 0.3) + _paired("snapkv 25%", better, 0.1)
    (claim,) = claims(turned)
    assert claim.verdict == claim.kl_verdict == "does not"


def test_a_claim_with_documents_for_and_against_cannot_be_told():
    def answers(cell: str, parity: int) -> list[dict]:
        return [_records(cell, [n % 2 == parity])[0] | {"document": n} for n in range(10)]

    (claim,) = claims(answers("kvmerger 50%", 0) + answers("h2o 50%", 1))
    assert claim.verdict == CANNOT


def test_nothing_is_claimed_from_few_documents_or_where_all_fails():
    right, wrong = [True, True, False], [False, False, False]
    few = [r for r in _paired("adakv 5%", right, 0.1) + _paired("snapkv 5%", wrong, 0.2)
           if r["document"] < 4]  # fmt: skip
    bad = _paired("adakv 5%", wrong, 2.0) + _paired("snapkv 5%", wrong, 2.1)
    assert [c.verdict for c in claims(few) + claims(bad)] == [CANNOT, CANNOT]


def test_a_method_without_queries_is_compared_with_in_both_views():
    records = _paired("kvmerger 35%", [True], 0.1) + _paired("kvmerger 35%", [True], 0.1, seen=True)
    records += _paired("cam 35%", [False], 0.5)
    assert [(c.seen, c.verdict) for c in claims(records)] == [
        (False, "holds here"),
        (True, "holds here"),
    ]


@pytest.mark.parametrize(
    ("wrong_in_50", "verdict"), [(0, "holds here"), (1, "holds here"), (2, "does not")]
)
def test_a_claim_of_no_loss_allows_two_points(wrong_in_50, verdict):
    """PQCache against the full cache, whose cell has no budget."""
    given = [n >= wrong_in_50 for n in range(50)]
    records = _paired("full", [True] * 50, 0.0) + _paired("pqcache 20%", given, 0.01)
    (claim,) = claims(records)
    assert (claim.worse, claim.budget, claim.verdict) == ("full", "20%", verdict)
    assert claim.right.mean == pytest.approx(-wrong_in_50 / 50) and not claim.kl_verdict


def test_markdown_has_a_row_per_cell_and_a_row_per_claim():
    records = _paired("adakv 25%", [True], 0.1) + _paired("snapkv 25%", [True], 0.1)
    lines = [*tables(rows(records)), *claim_table(claims(records))]
    assert sum(line.startswith("| adakv 25% |") for line in lines) == 1
    assert any("adakv ≥ snapkv" in line and "holds here" in line for line in lines)
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
