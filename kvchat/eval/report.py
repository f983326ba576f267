"""Tables of an evaluation: means with bootstrap intervals, from the records alone."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from kvchat.eval.metrics import METRICS
from kvchat.terminal.text import clean, counted, size

DRAWS = 1000
CANNOT = "cannot be told"
FEW = 200  # questions below which an interval that covers the comparison says nothing
DOCUMENTS = 5  # fewer prove nothing


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % bootstrap interval over documents and their questions."""

    mean: float
    low: float
    high: float


def estimate(groups: list[list[float]], seed: int = 0) -> Estimate:
    """Mean of all values; whole groups (documents) are drawn with replacement.

    Questions about one document are not independent, so documents are the units.
    """
    totals = torch.tensor([sum(group) for group in groups], dtype=torch.float64)
    counts = torch.tensor([len(group) for group in groups], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(groups), (DRAWS, len(groups)), generator=generator)
    means = totals[drawn].sum(1) / counts[drawn].sum(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(float(totals.sum() / counts.sum()), low, high)


def worth(record: dict[str, Any]) -> float:
    """What an answer is worth; records from before there were scores are right or wrong."""
    return float(record.get("score", record["right"]))


@dataclass(frozen=True)
class Row:
    """One cell of the report: `right` is the share of answers with full marks."""

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

    @property
    def title(self) -> str:
        """What was asked, in one line."""
        kind = "" if self.kind in self.task else f" · {self.kind}"
        asked = counted(self.questions, "question"), counted(self.documents, "document")
        return f"{clean(self.task)} · {sized(self.length)}{kind} · {' about '.join(asked)}"

    @property
    def figure(self) -> str:
        """What the score is called: graded ones by their metric."""
        metric = METRICS.get(self.metric)
        return metric.label if metric and metric.graded else "right"


def sized(length: int) -> str:
    """`4,096 tokens`, or that documents of a file are as they are."""
    return f"{length:,} tokens" if length else "whole documents"


def rows(records: Iterable[dict[str, Any]]) -> list[Row]:
    """Records grouped into cells, compared with the full cache of the same questions."""
    groups: dict[tuple, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        key = (record["task"], record["length"], record["kind"], record["seen"], record["cell"])
        groups[key][record["document"]].append(record)
    table = []
    for (task, length, kind, seen, cell), documents in groups.items():
        flat = [record for group in documents.values() for record in group]
        right = estimate([[float(r["right"]) for r in group] for group in documents.values()])
        score = estimate([[worth(r) for r in group] for group in documents.values()])
        kl = estimate([[r["kl"] for r in group] for group in documents.values()])
        against = groups.get((task, length, kind, False, "full"))
        table.append(
            Row(
                task=task,
                length=length,
                cell=cell,
                seen=seen,
                kind=kind,
                questions=len(flat),
                documents=len(documents),
                right=right,
                kl=kl,
                kept=sum(r["kept"] for r in flat) / len(flat),
                bytes=sum(r["bytes"] for r in flat) / len(flat),
                verdict="" if cell == "full" or not against else _verdict(score, against, flat),
                metric=flat[0].get("metric", ""),
                score=score,
            )
        )
    return table


def _verdict(
    score: Estimate, against: dict[int, list[dict[str, Any]]], flat: list[dict[str, Any]]
) -> str:
    full = [worth(r) for group in against.values() for r in group]
    mean = sum(full) / len(full)
    covers = score.low <= mean <= score.high
    documents = len({record["document"] for record in flat})
    return CANNOT if documents < DOCUMENTS or (covers and len(flat) < FEW) else ""


def screen_tables(table: list[Row]) -> Iterator[Text | Table]:
    """The report for the screen: a heading and a table per task, length and kind of question."""
    groups: dict[tuple[str, int, str], dict[str, dict[bool, Row]]] = defaultdict(dict)
    for row in table:
        groups[row.task, row.length, row.kind].setdefault(row.cell, {})[row.seen] = row
    for cells in groups.values():
        one = next(iter(next(iter(cells.values())).values()))
        yield Text(f"\n{one.title} · {one.figure}, %", "bold")
        grid = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        heads = ("cell", "kept", "KV", "unseen", "95 %", "KL", "seen", "95 %", "KL")
        for number, name in enumerate(heads):
            # a long name of a cell breaks, numbers never do
            grid.add_column(name, justify="right" if number else "left", no_wrap=number > 0)
        for cell, views in cells.items():
            row = next(iter(views.values()))
            grid.add_row(
                cell,
                f"{row.kept:.1%}",
                size(row.bytes),
                *_columns(views.get(False)),
                *_columns(views.get(True)),
            )
        yield grid
    if any(row.verdict for row in table):
        yield Text(
            f"? {CANNOT}: under {DOCUMENTS} documents, or under {FEW} questions and the interval "
            "covers the full cache"
        )


def _columns(row: Row | None) -> tuple[str, str, str]:
    if row is None:
        return "", "", ""
    interval = f"{100 * row.score.low:.0f}–{100 * row.score.high:.0f}" if row.documents > 1 else ""
    mark = "?" if row.verdict else ""
    return f"{mark}{100 * row.score.mean:.1f}", interval, f"{row.kl.mean:.3f}"
