"""The table of an evaluation: means with bootstrap intervals, from the records alone."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kvchat.terminal.text import clean, counted, size

Record = dict[str, Any]
DRAWS = 1000
CANNOT = "cannot be told"
FEW = 200  # questions below which an interval that covers the comparison says nothing
DOCUMENTS = 5  # fewer prove nothing
HEADS = ("cell", "question", "kept", "KV", "score, %", "KL")


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % bootstrap interval over documents and their questions."""

    mean: float
    low: float
    high: float


def estimate(groups: Sequence[Sequence[float]]) -> Estimate:
    """Mean of all values; whole groups (documents) are drawn with replacement.

    Questions about one document are not independent, so documents are the units.
    """
    totals = torch.tensor([sum(group) for group in groups], dtype=torch.float64)
    counts = torch.tensor([len(group) for group in groups], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(groups), (DRAWS, len(groups)), generator=generator)
    means = totals[drawn].sum(1) / counts[drawn].sum(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(float(totals.sum() / counts.sum()), low, high)


def worth(record: Record) -> float:
    """The score of an answer; records from before there were scores are right or wrong."""
    return float(record["score"] if "score" in record else record["right"])


@dataclass(frozen=True)
class Row:
    """Answers of one cell to one kind of question: `right` is the share with the full score, `kl`
    in nats, `kept` a share of all entries, `verdict` CANNOT where the full cache is not told from
    it. `cited` is the share of answers whose first source holds the fact, where there is one."""

    task: str
    length: int
    cell: str
    seen: bool
    kind: str
    questions: int
    documents: int
    right: Estimate
    kl: Estimate
    kept: float
    bytes: float
    verdict: str
    metric: str
    score: Estimate
    cited: float | None = None


def rows(records: Iterable[Record]) -> list[Row]:
    """Records grouped into cells, compared with the full cache of the same questions."""
    groups: dict[tuple[str, int, str, bool, str], list[Record]] = defaultdict(list)
    for record in records:
        where = (record["task"], record["length"], record["kind"], record["seen"], record["cell"])
        groups[where].append(record)
    full = {where[:3]: found for where, found in groups.items() if where[3:] == (False, "full")}
    table = []
    for (task, length, kind, seen, cell), found in groups.items():
        documents: dict[int, list[Record]] = defaultdict(list)
        for record in found:
            documents[record["document"]].append(record)
        each = list(documents.values())
        score = estimate([[worth(r) for r in group] for group in each])
        against = full.get((task, length, kind)) if cell != "full" else None
        row = Row(
            task=task,
            length=length,
            cell=cell,
            seen=seen,
            kind=kind,
            questions=len(found),
            documents=len(documents),
            right=estimate([[float(r["right"]) for r in group] for group in each]),
            kl=estimate([[r["kl"] for r in group] for group in each]),
            kept=sum(r["kept"] for r in found) / len(found),
            bytes=sum(r["bytes"] for r in found) / len(found),
            verdict=_verdict(score, against, len(found), len(documents)) if against else "",
            metric=found[0].get("metric", "right"),
            score=score,
            cited=sum(r["cited"] for r in found) / len(found) if "cited" in found[0] else None,
        )
        table.append(row)
    return table


def _verdict(score: Estimate, full: list[Record], questions: int, documents: int) -> str:
    covers = score.low <= sum(map(worth, full)) / len(full) <= score.high
    return CANNOT if documents < DOCUMENTS or (covers and questions < FEW) else ""


def tables(table: Iterable[Row]) -> Iterator[str]:
    """Lines of Markdown: a heading and a table per task, length and kind of question."""
    groups: dict[tuple[str, int, str], list[Row]] = defaultdict(list)
    for row in table:
        groups[row.task, row.length, row.kind].append(row)
    for (task, length, kind), found in groups.items():
        asked = counted(found[0].questions, "question"), counted(found[0].documents, "document")
        parts = [task, sized(length), *([] if kind in task else [kind]), " about ".join(asked)]
        yield f"### {clean(' · '.join(parts))} · score: {found[0].metric}\n"
        cited = found[0].cited is not None
        yield from _aligned([(*HEADS, *["cited, %"] * cited), *map(_cells, found)])
        yield ""
    if any(row.verdict for found in groups.values() for row in found):
        yield (
            f"? {CANNOT}: under {DOCUMENTS} documents, or under {FEW} questions and the interval "
            "covers the full cache"
        )


def sized(length: int) -> str:
    """`4,096 tokens`, or that documents of a file are as they are."""
    return f"{length:,} tokens" if length else "whole documents"


def _cells(row: Row) -> tuple[str, ...]:
    score = f"{'?' if row.verdict else ''}{100 * row.score.mean:.1f}"
    if row.documents > 1:
        score += f" ({100 * row.score.low:.0f}–{100 * row.score.high:.0f})"
    view = "" if row.cell == "full" else "seen" if row.seen else "unseen"
    cited = [] if row.cited is None else [f"{100 * row.cited:.1f}"]
    kept = f"{row.kept:.1%}", size(row.bytes)
    return row.cell, view, *kept, score, f"{row.kl.mean:.3f}", *cited


def _aligned(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """A heading and rows as a Markdown table; all but the first two columns are numbers."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    marks = [f"{'-' * (w - 1)}{':' if at > 1 else '-'}" for at, w in enumerate(widths)]
    for cells in (lines[0], marks, *lines[1:]):
        found = [c.rjust(w) for c, w in zip(cells[2:], widths[2:], strict=True)]
        yield f"| {' | '.join([cells[0].ljust(widths[0]), cells[1].ljust(widths[1]), *found])} |"
