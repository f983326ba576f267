"""KVzip: rows that are needed to tell the document again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from kvchat.engine.budget import Geometry
from kvchat.engine.cache.segment import FlatSegment, Segment
from kvchat.engine.methods import budgets
from kvchat.engine.methods.base import Needs, Prefilled
from kvchat.engine.methods.eviction import Eviction
from kvchat.engine.methods.scores import pooled_mass
from kvchat.errors import KvchatError

FOLD_WINDOW, FOLD_KERNEL = 32, 7  # of a conversation's newest queries


@dataclass(frozen=True)
class KVzip(Eviction):
    """Keeps what the model looks at while it repeats the document, whatever will be asked.

    KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction,
    https://arxiv.org/abs/2505.23416. The best rows of all layers and heads together stay, and what
    stands before the document. Different here: scores are computed layer by layer during the one
    reading, with one layer's rows alive. Until all layers are read each keeps at most `over` times
    an even share (1: every layer keeps just that); fp32 scores, chosen by count.
    """

    over: float = 2.0
    name: ClassVar[str] = "kvzip"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.over >= 1:
            raise KvchatError("usage", f"{self.name}: over={self.over:g} is below 1", "over=2")

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
        even = replace(self, over=1.0)
        return even.compress(replace(prefilled, replay_mass=mass, replay_change=mass))

    def scored(self, prefilled: Prefilled) -> Tensor:
        """The most that a query of the replay looks at each row, `[H, T]`."""
        assert prefilled.replay_mass is not None, "the reading gives what `needs` names"
        return prefilled.replay_mass

    def score(self, prefilled: Prefilled, rows: int, each: int) -> Tensor:
        """The first rows' scores."""
        return self.scored(prefilled)[:, :rows].clone()

    def spread(self, total: int, geometry: Geometry) -> list[int]:
        """More than the budget of every layer, if layers are pruned together."""
        return [min(int(self.over * total), geometry.full)] * geometry.layers

    def worth(self, prefilled: Prefilled, segment: Segment) -> Tensor:
        """The scores of the rows that were kept: the newest row first, then what is protected."""
        assert isinstance(segment, FlatSegment), segment.kind
        table = self.scored(prefilled).clamp(max=torch.finfo(torch.float32).max)
        table[:, : self.sinks] = torch.finfo(torch.float32).max
        table[:, -1] = float("inf")
        at = (segment.position - prefilled.start).long()
        head = torch.arange(len(segment.lengths), device=at.device)
        return table[head.repeat_interleave(torch.tensor(segment.lengths, device=at.device)), at]

    def prune(
        self, segments: Sequence[Segment], worth: Sequence[Tensor], geometry: Geometry
    ) -> list[Segment]:
        """The best rows of all layers and heads together."""
        total = geometry.layers * self.budget.rows(geometry)
        every = torch.cat(list(worth))
        kept = torch.zeros_like(every, dtype=torch.bool)
        kept[torch.sort(every, descending=True, stable=True).indices[:total]] = True
        parts = zip(segments, kept.split([len(part) for part in worth]), strict=True)
        return [s.where(chosen) for s, chosen in parts if isinstance(s, FlatSegment)]

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

    def scored(self, prefilled: Prefilled) -> Tensor:
        """The largest change that each row makes in what a query of the replay reads, `[H, T]`."""
        assert prefilled.replay_change is not None, "the reading gives what `needs` names"
        return prefilled.replay_change
