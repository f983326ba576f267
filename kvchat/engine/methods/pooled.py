"""The frame of methods whose layers and heads share one budget. Not a method itself."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from kvchat.engine.budget import Geometry
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods import budgets
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.eviction import Eviction
from kvchat.engine.methods.options import PooledOptions


@dataclass(frozen=True)
class Pooled(PooledOptions, Eviction):
    """Keeps the best entries of all layers and heads together.

    Every head is sure of the fraction `even` of an even share, of its sinks and its newest entries.
    """

    @abstractmethod
    def tables(self, prefilled: Prefilled) -> tuple[Tensor, Tensor]:
        """What the entries of a layer are worth, `[H, T]` each: beside those of other heads and
        layers, and beside those of their own head."""

    def recent_of(self, prefilled: Prefilled) -> int:
        """How many of the newest entries every head keeps."""
        return self.newest(self.budget.entries(self.priced(prefilled.geometry)) // prefilled.heads)

    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        return self.tables(prefilled)[0][:, :entries].clone()

    def allocate(self, scores: Tensor, total: int) -> list[int]:
        """As the layers of a document share: partly even, the rest to the best scores."""
        return budgets.mixed(scores, total, self.even)

    def entries(self, geometry: Geometry) -> list[int]:
        """What each layer may keep: the whole budget, until other layers compete for it."""
        geometry = self.priced(geometry)
        self.require_room(self.budget.entries(geometry), geometry)
        return [min(self.together(geometry), geometry.full)] * geometry.layers

    def together(self, geometry: Geometry) -> int:
        return geometry.layers * self.budget.entries(self.priced(geometry))

    def compress(self, prefilled: Prefilled) -> FlatSegment:
        """Every entry, until other layers compete with it."""
        return prefilled.keep_all()

    def extend(self, prefilled: Prefilled) -> FlatSegment:
        """A layer's part of a conversation: each layer keeps as much."""
        return self.reduce(prefilled, self.budget.entries(self.priced(prefilled.geometry)))

    def worth(self, prefilled: Prefilled, segment: FlatSegment) -> tuple[Tensor, Tensor]:
        """The scores of the kept entries: the newest entries first, then the sinks."""
        heads, most = len(segment.lengths), torch.finfo(torch.float32).max
        recent = self.recent_of(prefilled)
        at = (segment.position - prefilled.start).long()
        head = torch.arange(heads, device=at.device)
        head = head.repeat_interleave(torch.tensor(segment.lengths, device=at.device))

        def of(table: Tensor) -> Tensor:
            table = table.clamp(max=most)
            table[:, : self.sinks] = most
            table[:, table.shape[1] - recent :] = float("inf")
            return table[head, at]

        among, within = self.tables(prefilled)
        return of(among), of(within)
