"""The frame of every method that keeps some entries and frees the others. Not a method itself.

A family member says how entries are scored and how a layer's entries are shared out; the total, the
entries that are always kept and the reduction are here.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvchat.engine.budget import Geometry
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods import budgets
from kvchat.engine.methods.base import Method, Prefilled
from kvchat.engine.methods.options import EvictionOptions
from kvchat.engine.methods.scores import ranked


@dataclass(frozen=True)
class Eviction(EvictionOptions, Method):
    """Scores entries, shares a layer's budget out over its heads, keeps the best entries of each.

    The first `sinks` entries of a document and its newest entries always stay; the budget pays for
    them.
    """

    def newest(self, each: int) -> int:
        """How many of the newest entries every head keeps, if an even share is `each` entries."""
        return min(1, each)

    def require_room(self, total: int, geometry: Geometry) -> None:
        """Raise KvchatError("usage") if `total` entries of a layer cannot hold what stays."""
        return

    @abstractmethod
    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        """What the first `entries` entries are worth, `[H, entries]` fp32, higher is better.

        An even share keeps `each` of them per head.
        """

    def allocate(self, scores: Tensor, total: int) -> list[int]:
        """How many of the scored entries each head of all ranks keeps, `total` in all: equally
        many."""
        return budgets.uniform(total, (scores != budgets.ABSENT).sum(dim=1).tolist())

    def order(self, prefilled: Prefilled, scores: Tensor, counts: list[int]) -> Tensor:
        """Entry numbers `[H, N]` of each head in which they are kept, best first."""
        return ranked(scores)

    def spread(self, total: int, geometry: Geometry) -> list[int]:
        """Entries of each layer, `layers * total` in all: the same in every layer."""
        return [total] * geometry.layers

    def entries(self, geometry: Geometry) -> list[int]:
        """Entries that each layer keeps, over all its heads. Raises KvchatError("usage")."""
        geometry = self.priced(geometry)
        total = self.budget.entries(geometry)
        self.require_room(total, geometry)
        return self.spread(total, geometry)

    def compress(self, prefilled: Prefilled) -> FlatSegment:
        """The best entries of each head, its sinks and its newest entries."""
        return self.reduce(prefilled, self.share(prefilled))

    def reduce(self, prefilled: Prefilled, total: int) -> FlatSegment:
        """The best `total` entries of the layer."""
        return prefilled.keep(self.kept(prefilled, total))

    def kept(self, prefilled: Prefilled, total: int) -> Tensor:
        """Which `total` entries stay, `[H, T]` bool: those that always do, and the best."""
        heads, tokens = prefilled.heads, prefilled.shape[1]
        if total >= prefilled.entries:
            return prefilled.exists
        recent = self.newest(self.budget.entries(self.priced(prefilled.geometry)) // heads)
        scorable, prefix = tokens - recent, total - heads * recent
        scores = self.score(prefilled, scorable, prefix // heads)
        if prefilled.position is None:  # a document, not a conversation
            scores[:, : min(self.sinks, prefix // heads)] = float("inf")
        scores.masked_fill_(~prefilled.exists[:, :scorable], budgets.ABSENT)
        counts = prefilled.counts(self.allocate(prefilled.every(scores), prefix))
        return first_of(prefilled, self.order(prefilled, scores, counts), counts, recent)


def first_of(prefilled: Prefilled, order: Tensor, counts: Sequence[int], recent: int) -> Tensor:
    """The first `counts[h]` entries of `order [H, N]` in each head and the last `recent` entries,
    `[H, T]` bool.

    `order` lists entry numbers of the first `N = T - recent` entries, best first.
    """
    tokens, scorable = prefilled.shape[1], order.shape[1]
    assert scorable + recent == tokens, f"{scorable} + {recent} entries are not {tokens}"
    rank = torch.arange(scorable, device=order.device)
    kept = prefilled.exists
    first = rank < torch.tensor(counts, device=order.device)[:, None]
    kept[:, :scorable] = kept[:, :scorable].scatter(1, order, first)
    return kept
