"""What an evaluation says: intervals are honest, the table and the claims are what records give."""

import re

import pytest

from kvchat.eval.report import CANNOT, FEW, estimate, rows, tables
from tests.support.program import ROOT


@pytest.fixture
def claims(monkeypatch):
    """`benchmarks/claims.py`, which makes the claims of docs/results.md."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from claims import claims

    return claims


def test_interval_draws_documents_not_questions():
    alike = estimate([[1.0] * 20, [0.0] * 20])  # two documents, whatever their questions
    assert alike.mean == 0.5 and (alike.low, alike.high) == (0.0, 1.0)
    many = estimate([[float(i % 2)] for i in range(400)])
    assert 0.44 < many.low < 0.5 < many.high < 0.56


def records(cell: str, right: list[bool], **changes) -> list[dict]:
    """A record per answer, five about each document."""
    fixed = {"task": "t", "length": 1, "kind": "k", "seen": False, "cell": cell, "kl": 0.1}
    fixed |= {"kept": 1.0, "bytes": 10} | changes
    return [
        {"document": number // 5, "question": number, "right": value} | fixed
        for number, value in enumerate(right)
    ]


@pytest.mark.parametrize(
    ("full", "cell", "verdict"),
    [
        ([True, False] * (FEW // 2 - 50), [True, False] * (FEW // 2 - 50), CANNOT),
        ([True, False] * (FEW // 2), [True, False] * (FEW // 2), ""),
        ([True] * 50, [False] * 50, ""),  # a clear difference
    ],
)
def test_few_questions_that_prove_nothing_are_marked(full, cell, verdict):
    table = rows(records("full", full) + records("other", cell))
    assert [row.verdict for row in table] == ["", verdict]


def paired(cell: str, right: list[bool], **changes) -> list[dict]:
    """Records of ten documents, the same answers about each."""
    return [r for n in range(10) for r in records(cell, right, document=n, **changes)]


def test_claims_are_paired_differences(claims):
    """Better in one question of four, everywhere: that holds, the other way round it does not."""
    more, less = [True, True, True, False], [True, True, False, False]
    (claim,) = claims(paired("adakv 25%", more) + paired("snapkv 25%", less))
    names = [claim[key] for key in ("better", "worse", "budget", "questions")]
    assert names == ["adakv", "snapkv", "25%", 40]
    assert claim["right"]["mean"] == pytest.approx(0.25) and claim["verdict"] == "holds here"
    (claim,) = claims(paired("adakv 25%", less) + paired("snapkv 25%", more))
    assert claim["verdict"] == "does not"


def test_nothing_is_claimed_from_few_documents_mixed_ones_or_where_all_fails(claims):
    right, wrong = [True, True, False], [False, False, False]
    both = paired("adakv 5%", right) + paired("snapkv 5%", wrong)
    few = [record for record in both if record["document"] < 4]
    bad = paired("adakv 5%", wrong) + paired("snapkv 5%", wrong)
    mixed = [
        record
        for number in range(10)
        for cell, parity in (("kvmerger 50%", 0), ("h2o 50%", 1))
        for record in records(cell, [number % 2 == parity], document=number)
    ]
    assert [c["verdict"] for found in (few, bad, mixed) for c in claims(found)] == [CANNOT] * 3


def test_a_method_without_queries_is_compared_with_in_both_views(claims):
    told = paired("kvmerger 35%", [True]) + paired("kvmerger 35%", [True], seen=True)
    told += paired("cam 35%", [False])
    assert [(c["seen"], c["verdict"]) for c in claims(told)] == [
        (False, "holds here"),
        (True, "holds here"),
    ]


@pytest.mark.parametrize(
    ("wrong_in_50", "verdict"), [(0, "holds here"), (1, "holds here"), (2, "does not")]
)
def test_a_claim_of_no_loss_allows_two_points(claims, wrong_in_50, verdict):
    """PQCache against the full cache, whose cell has no budget; unanswerable ones do not count."""
    given = [n >= wrong_in_50 for n in range(50)]
    told = paired("full", [True] * 50) + paired("pqcache 20%", given)
    told += paired("full", [True], kind="unanswerable")
    (claim,) = claims(told + paired("pqcache 20%", [False], kind="unanswerable"))
    assert (claim["worse"], claim["budget"], claim["verdict"]) == ("full", "20%", verdict)
    assert claim["right"]["mean"] == pytest.approx(-wrong_in_50 / 50)


def cells(lines: list[str]) -> list[list[str]]:
    return [re.split(r" *\| *", line)[1:-1] for line in lines if line.startswith("|")]


def test_the_table_has_a_line_per_cell_and_view():
    told = paired("full", [True, False]) + paired("adakv 25%", [True, True], kept=0.25)
    told += paired("adakv 25%", [False, True], seen=True, kept=0.25)
    lines = list(tables(rows(told)))
    assert len({len(line) for line in lines if line.startswith("|")}) == 1
    heads, _, *found = cells(lines)
    assert heads == ["cell", "question", "kept", "KV", "score, %", "KL"]
    assert found == [
        ["full", "", "100.0%", "10 B", "50.0 (50–50)", "0.100"],
        ["adakv 25%", "unseen", "25.0%", "10 B", "100.0 (100–100)", "0.100"],
        ["adakv 25%", "seen", "25.0%", "10 B", "?50.0 (50–50)", "0.100"],
    ]
    assert CANNOT in lines[-1]


def test_graded_scores_are_in_the_table_beside_what_is_right():
    told = [
        record | {"score": score, "right": score == 1, "metric": "part"}
        for record, score in zip(records("full", [True] * 4), (0, 0.5, 0.5, 1), strict=True)
    ]
    (row,) = rows(told)
    assert (row.score.mean, row.right.mean, row.metric) == (0.5, 0.25, "part")
    heading, *lines = tables([row])
    assert heading.strip().endswith(": part")
    assert cells(lines)[2][4] == "50.0", "one document has no interval"
    (old,) = rows(records("full", [True, False]))  # of before there were scores
    assert old.score == old.right and old.score.mean == 0.5


def test_names_of_files_do_not_steer_the_terminal():
    lines = list(tables(rows(records("full", [True], task="ruler:\x1b[2J"))))
    assert len(lines) > 3 and not any("\x1b" in line for line in lines)
