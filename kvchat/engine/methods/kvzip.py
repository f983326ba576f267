"""KVzip: rows that are needed to tell the document again."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods import budgets
from kvchat.engine.methods.base import Needs, Prefilled
from kvchat.engine.methods.eviction import Eviction
from kvchat.engine.methods.scores import pooled_mass

FOLD_WINDOW, FOLD_KERNEL = 32, 7  # of a conversation's newest queries


@dataclass(frozen=True)
class KVzip(Eviction):
    """Keeps what the model looks at while it repeats the document, whatever will be asked.

    KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction,
    https://arxiv.org/abs/2505.23416. The best rows of all heads of a layer stay; what stands before
    the document stays too. Different here: scores are computed layer by layer during the one
    reading, with one layer's rows alive, so a budget is per layer and not over all layers; fp32
    scores, chosen by count.
    """

    name: ClassVar[str] = "kvzip"

    @property
    def needs(self) -> Needs:
        """Replays of the document."""
        return Needs(replay=True)

    @property
    def watches(self) -> Needs:
        """The newest queries of the conversation."""
        return Needs(queries=FOLD_WINDOW)

    def extend(self, prefilled: Prefilled) -> FlatSegment:
        """Folded turns are scored by the newest queries: to repeat them is another reading."""
        _, rows = prefilled.shape
        mass = pooled_mass(prefilled, rows, FOLD_KERNEL, "max", "mass")
        return self.compress(replace(prefilled, replay_mass=mass, replay_change=mass))

    def score(self, prefilled: Prefilled, rows: int, each: int) -> Tensor:
        """The most that a query of the replay looks at a row."""
        assert prefilled.replay_mass is not None, "the reading gives what `needs` names"
        return prefilled.replay_mass[:, :rows].clone()

    def allocate(self, scores: Tensor, total: int) -> list[int]:
        """The best scores of all heads together."""
        return budgets.adaptive(scores, total, floor=0.0)


@dataclass(frozen=True)
class KVzipPlus(KVzip):
    """KVzip, weighed by what a row can change in the layer's output.

    KVzip+ as in kvpress: attention times the norm of the projected value, over the norm of the
    attention block's input.
    """

    name: ClassVar[str] = "kvzip+"

    @property
    def needs(self) -> Needs:
        """Replays of the document, and the norms."""
        return Needs(replay=True, replay_change=True)

    def score(self, prefilled: Prefilled, rows: int, each: int) -> Tensor:
        """The largest change that a row makes in what a query of the replay reads."""
        assert prefilled.replay_change is not None, "the reading gives what `needs` names"
        return prefilled.replay_change[:, :rows].clone()
