"""The papers' claims, tried on the records of an evaluation: is one method at least as good?"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from kvchat.eval.report import CANNOT, DOCUMENTS, Estimate, estimate, sized, worth
from kvchat.terminal.text import clean

CLAIMS = (
    ("adakv", "snapkv", "Ada-KV, 2407.11550", 0.0),
    ("ada-pyramid", "pyramidkv", "Ada-KV, 2407.11550", 0.0),
    ("critical-adakv", "criticalkv", "Ada-KV, 2407.11550", 0.0),
    ("kvmerger", "h2o", "KVMerger, 2407.08454", 0.0),
    ("kvmerger", "cam", "KVMerger, 2407.08454", 0.0),
    ("pqcache", "full", "PQCache, 2407.12820", 0.02),
)
"""Better or equal, than which, who says so, and how much of the score it may lose."""


FLOOR = 0.1  # where both answer less than this right, neither is better


@dataclass(frozen=True)
class Claim:
    """One claim in one cell: the paired difference in scores (`right`, 0 to 1) and in KL (nats).

    Each with a verdict: `holds here`, `does not` or `cannot be told`, by the 95 % interval of the
    difference against zero, or against what may be lost. Less KL to the full cache is better;
    nothing is told of it where the other is the full cache.
    """

    task: str
    length: int
    seen: bool
    budget: str
    better: str
    worse: str
    source: str
    questions: int
    right: Estimate
    verdict: str
    kl: Estimate
    kl_verdict: str


Records = dict[tuple[int, int], dict[str, Any]]  # by document and question


def claims(records: Iterable[dict[str, Any]]) -> list[Claim]:
    """Every claim that the records can try, question by question, documents drawn together.

    Unanswerable questions are left out: a cache that has lost everything gets them right.
    """
    cells: dict[tuple[str, int, bool, str, str], Records] = defaultdict(dict)
    for record in records:
        if record["kind"] == "unanswerable":
            continue
        method, _, budget = record["cell"].partition(" ")
        where = (record["task"], record["length"], record["seen"], budget, method)
        cells[where][record["document"], record["question"]] = record
    found = []
    for task, length, seen, budget in dict.fromkeys(where[:4] for where in cells):
        for claim in CLAIMS:
            better, worse = claim[:2]
            mine = cells.get((task, length, seen, budget, better))
            # a method that looks at no queries is measured unseen only, the full cache once
            places = ((seen, budget), (False, budget), (False, ""))
            there = (cells.get((task, length, *place, worse)) for place in places)
            theirs = next((records for records in there if records), None)
            if mine and theirs:
                cell = (task, length, seen, budget)
                found.append(_tried(mine, theirs, cell, claim))
    return found


def _tried(
    mine: Records,
    theirs: Records,
    where: tuple[str, int, bool, str],
    claim: tuple[str, str, str, float],
) -> Claim:
    right: dict[int, list[float]] = defaultdict(list)
    kl: dict[int, list[float]] = defaultdict(list)
    both = sorted(mine.keys() & theirs.keys())
    for document, question in both:
        a, b = mine[document, question], theirs[document, question]
        right[document].append(worth(a) - worth(b))
        kl[document].append(a["kl"] - b["kl"])
    better, worse, source, loss = claim
    share = [sum(worth(cell[at]) for at in both) / len(both) for cell in (mine, theirs)]
    task, length, seen, budget = where
    more, less = estimate(list(right.values())), estimate(list(kl.values()))
    enough = len(right) >= DOCUMENTS
    return Claim(
        task=task,
        length=length,
        seen=seen,
        budget=budget,
        better=better,
        worse=worse,
        source=source,
        questions=len(both),
        right=more,
        verdict=_verdict(more, -loss) if enough and max(share) >= FLOOR else CANNOT,
        kl=less,
        kl_verdict="" if worse == "full" else _verdict(_minus(less), 0.0) if enough else CANNOT,
    )


def _minus(found: Estimate) -> Estimate:
    return Estimate(-found.mean, -found.high, -found.low)


def _verdict(found: Estimate, least: float) -> str:
    if found.low >= least:
        return "holds here"
    return "does not" if found.high < least else CANNOT


def screen_claims(tried: list[Claim]) -> Iterator[Text]:
    """A line per claim, for the screen."""
    if tried:
        yield Text("\nclaims (difference in per cent, 95 %)", "bold")
    for claim in tried:
        view, right = "seen" if claim.seen else "unseen", claim.right
        yield Text(
            f"{claim.better} ≥ {claim.worse} · {clean(claim.task)}, {sized(claim.length)}, "
            f"{claim.budget}, {view}: {100 * right.mean:+.1f} "
            f"({100 * right.low:+.0f} to {100 * right.high:+.0f}) {claim.verdict}"
        )
