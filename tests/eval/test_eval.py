"""What an evaluation says: intervals are honest, tables and claims are what the records give."""

import pytest

from kvchat.eval.claims import claims
from kvchat.eval.markdown import claim_table, tables
from kvchat.eval.report import CANNOT, FEW, estimate, rows, screen_tables


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
    grid, tried = list(tables(rows(records))), list(claim_table(claims(records)))
    lines = [*grid, *tried]
    assert sum(line.startswith("| adakv 25% |") for line in lines) == 1
    assert any("adakv ≥ snapkv" in line and "holds here" in line for line in lines)
    for table in (grid, tried):
        assert len({line.count("|") for line in table if line.startswith("|")}) == 1


def test_graded_scores_are_in_the_tables_beside_what_is_right():
    records = [
        record | {"score": score, "right": score == 1, "metric": "part"}
        for record, score in zip(_records("full", [True] * 4), (0, 0.5, 0.5, 1), strict=True)
    ]
    (row,) = rows(records)
    assert (row.score.mean, row.right.mean, row.figure) == (0.5, 0.25, "share of the parts")
    (heading,) = [line for line in tables([row]) if line.startswith("| cell")]
    assert "unseen: share of the parts" in heading
    assert any("| 50.0 | 0.1" in line for line in tables([row])), "one document has no interval"


def test_records_of_before_there_were_scores_are_right_or_wrong():
    (row,) = rows(_records("full", [True, False]))
    assert row.score == row.right and row.figure == "right" and row.score.mean == 0.5


def test_names_of_files_do_not_steer_the_terminal():
    (row,) = rows([record | {"task": "ruler:\x1b[2J"} for record in _records("full", [True])])
    lines = [str(next(iter(screen_tables([row])))), *tables([row])]
    assert len(lines) > 3 and not any("\x1b" in line for line in lines)
