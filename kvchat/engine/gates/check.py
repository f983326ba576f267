"""Whether a gate is in its depth: what it foretells beside what a short replay shows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt

from torch import Tensor

from kvchat.engine.gates import Gate
from kvchat.engine.gates.listener import LEAST, Listener
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.needs import GATE
from kvchat.engine.methods.options import REPEAT
from kvchat.engine.prefill.replay import Replay

TOKENS = 64  # of the document's middle that are replayed
LOST = 0.8  # a gate with less than this share of its correlation is out of its depth


@dataclass(frozen=True)
class Check(Listener):
    """Compares the gate's scores with those of a short replay.

    `sums` gets, for every layer, the covariance of both logarithms within heads and both variances.
    """

    chunk: int = TOKENS
    sums: list[tuple[float, float, float]] = field(default_factory=list, compare=False)

    def hear(self, prefilled: Prefilled, shown: Tensor) -> None:
        """Compare both, where a replay is about the entries."""
        assert prefilled.told is not None
        there = shown.isfinite().all(dim=0)
        both = (prefilled.every(table[:, there]) for table in (shown, prefilled.told[GATE]))
        x, y = map(_centred, both)
        self.sums.append((float((x * y).sum()), float((x * x).sum()), float((y * y).sum())))

    def replay(self, ids: Sequence[int]) -> Replay:
        """The tokens in the middle of a document, once more."""
        start = max(0, (len(ids) - TOKENS) // 2)
        end = min(start + TOKENS, len(ids))
        return Replay((REPEAT, self.chunk), (ids[start:end],), start, end)

    @property
    def correlation(self) -> float:
        """Of the logarithms of foretold and shown scores, the mean over layers."""
        found = [cov / max(sqrt(own * other), 1e-12) for cov, own, other in self.sums]
        return sum(found) / max(len(found), 1)


def usual(gate: Gate) -> float | None:
    """The correlation on text that was held out when a gate was fitted; None if none was."""
    explained = [float(each) for each in str(gate.about.get("r2", "")).split()]
    return sqrt(max(sum(explained) / len(explained), 0.0)) if explained else None


def lost(correlation: float, gate: Gate) -> bool:
    """Whether a gate foretells far less of a document than of text like that it was fitted to."""
    before = usual(gate)
    return before is not None and correlation < LOST * before


def _centred(table: Tensor) -> Tensor:
    """The logarithms of scores `[H, n]`, less each head's mean."""
    logs = table.clamp_min(LEAST).log()
    return logs - logs.mean(dim=1, keepdim=True)
