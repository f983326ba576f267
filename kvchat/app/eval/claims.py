"""The papers' claims, tried on the records of an evaluation: is one method at least as good?"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from kvchat.app.eval.report import CANNOT, Estimate, estimate, sized, worth
from kvchat.app.text import clean

CLAIMS = (
    ("adakv", "snapkv", "Ada-KV, 2407.11550"),
    ("ada-pyramid", "pyramidkv", "Ada-KV, 2407.11550"),
    ("critical-adakv", "criticalkv", "Ada-KV, 2407.11550"),
    ("kvmerger", "h2o", "KVMerger, 2407.08454"),
    ("kvmerger", "cam", "KVMerger, 2407.08454"),
)
"""Better or equal, than which, who says so."""


DOCUMENTS = 5  # fewer prove nothing
FLOOR = 0.1  # where both answer less than this right, neither is better


@dataclass(frozen=True)
class Claim:
    """One claim in one cell: the paired difference in scores (`right`, 0 to 1) and in KL (nats).

    Each with a verdict: `holds here`, `does not` or `cannot be told`, by the 95 % interval of the
    difference against zero. Less KL to the full cache is better.
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
        for better, worse, source in CLAIMS:
            mine = cells.get((task, length, seen, budget, better))
            # a method that looks at no queries is measured unseen only
            theirs = cells.get((task, length, seen, budget, worse)) or cells.get(
                (task, length, False, budget, worse)
            )
            if mine and theirs:
                cell = (task, length, seen, budget)
                found.append(_tried(mine, theirs, cell, (better, worse, source)))
    return found


def _tried(
    mine: Records,
    theirs: Records,
    where: tuple[str, int, bool, str],
    names: tuple[str, str, str],
) -> Claim:
    right: dict[int, list[float]] = defaultdict(list)
    kl: dict[int, list[float]] = defaultdict(list)
    both = sorted(mine.keys() & theirs.keys())
    for document, question in both:
        a, b = mine[document, question], theirs[document, question]
        right[document].append(worth(a) - worth(b))
        kl[document].append(a["kl"] - b["kl"])
    better, worse, source = names
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
        verdict=_verdict(more.low, more.high) if enough and max(share) >= FLOOR else CANNOT,
        kl=less,
        kl_verdict=_verdict(-less.high, -less.low) if enough else CANNOT,
    )


def _verdict(low: float, high: float) -> str:
    if low >= 0:
        return "holds here"
    return "does not" if high < 0 else CANNOT


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
