"""The papers' claims, tried on the records of an evaluation: is one method at least as good?"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from kvchat.eval.report import CANNOT, DOCUMENTS, Estimate, Record, estimate, worth

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


def claims(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Every claim that the records can try, question by question, documents drawn together.

    `right` is the paired difference of scores, 0 to 1, and `verdict` `holds here`, `does not` or
    CANNOT, by its 95 % interval against what may be lost. Unanswerable questions are left out: a
    cache that has lost everything gets them right.
    """
    cells: dict[tuple, dict[tuple[int, int], float]] = defaultdict(dict)
    for record in records:
        if record["kind"] != "unanswerable":
            method, _, budget = record["cell"].partition(" ")
            where = (record["task"], record["length"], record["seen"], budget, method)
            cells[where][record["document"], record["question"]] = worth(record)
    found = []
    for task, length, seen, budget in dict.fromkeys(where[:4] for where in cells):
        for better, worse, source, loss in CLAIMS:
            mine = cells.get((task, length, seen, budget, better))
            # a method that looks at no queries is measured unseen only, the full cache once
            places = ((seen, budget), (False, budget), (False, ""))
            there = (cells.get((task, length, *place, worse)) for place in places)
            theirs = next((scores for scores in there if scores), None)
            if mine and theirs:
                names = {"task": task, "length": length, "seen": seen, "budget": budget}
                names |= {"better": better, "worse": worse, "source": source}
                found.append(names | _tried(mine, theirs, loss))
    return found


def _tried(
    mine: dict[tuple[int, int], float], theirs: dict[tuple[int, int], float], loss: float
) -> dict[str, Any]:
    both = sorted(mine.keys() & theirs.keys())
    by_document: dict[int, list[float]] = defaultdict(list)
    for document, question in both:
        by_document[document].append(mine[document, question] - theirs[document, question])
    by = estimate(list(by_document.values()))
    best = max(sum(scores[at] for at in both) / len(both) for scores in (mine, theirs))
    enough = len(by_document) >= DOCUMENTS and best >= FLOOR
    verdict = _verdict(by, -loss) if enough else CANNOT
    return {"questions": len(both), "right": vars(by), "verdict": verdict}


def _verdict(by: Estimate, least: float) -> str:
    if by.low >= least:
        return "holds here"
    return "does not" if by.high < least else CANNOT
