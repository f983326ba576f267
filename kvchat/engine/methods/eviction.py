"""The frame of every method that keeps some rows and frees the others. Not a method itself.

A family member says how rows are scored and how a layer's rows are shared out; the total, the rows
that are always kept and the reduction are here.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvchat.engine.budget import DEFAULT_BUDGET, Budget, Geometry
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods import budgets
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.checks import require_least
from kvchat.engine.methods.evict import keep_all, keep_ranked
from kvchat.engine.methods.needs import Needs
from kvchat.engine.methods.scores import ranked


@dataclass(frozen=True)
class Eviction(ABC):
    """Scores rows, shares a layer's budget out over its heads, keeps the best rows of each.

    The first `sinks` rows of a document and its newest rows always stay; the budget pays for them.
    """

    budget: Budget = DEFAULT_BUDGET
    sinks: int = 4
    name: ClassVar[str]  # as in the table

    def __post_init__(self) -> None:
        require_least(self, "sinks", 0, 4)

    @property
    def needs(self) -> Needs:
        """Nothing but keys and values."""
        return Needs()

    def newest(self, each: int) -> int:
        """How many of the newest rows every head keeps, if an even share is `each` rows."""
        return min(1, each)

    def require_room(self, total: int, geometry: Geometry) -> None:
        """Raise KvchatError("usage") if `total` rows of a layer cannot hold what always stays."""
        return

    @abstractmethod
    def score(self, prefilled: Prefilled, rows: int, each: int) -> Tensor:
        """What the first `rows` rows are worth, `[H, rows]` fp32, higher is better.

        An even share keeps `each` of them per head.
        """

    def allocate(self, scores: Tensor, total: int) -> list[int]:
        """How many of the scored rows each head keeps, `total` in all: the same in every head."""
        return budgets.uniform(total, (scores != budgets.ABSENT).sum(dim=1).tolist())

    def order(self, prefilled: Prefilled, scores: Tensor, counts: list[int]) -> Tensor:
        """Row numbers `[H, N]` of each head in which they are kept, best first."""
        return ranked(scores)

    def spread(self, total: int, geometry: Geometry) -> list[int]:
        """Rows of each layer, `layers * total` in all: the same in every layer."""
        return [total] * geometry.layers

    def rows(self, geometry: Geometry) -> list[int]:
        """Rows that each layer keeps, over all its heads. Raises KvchatError("usage")."""
        total = self.budget.rows(geometry)
        self.require_room(total, geometry)
        return self.spread(total, geometry)

    def compress(self, prefilled: Prefilled) -> FlatSegment:
        """The best rows of each head, its sinks and its newest rows."""
        return self.reduce(prefilled, self.rows(prefilled.geometry)[prefilled.layer])

    def reduce(self, prefilled: Prefilled, total: int) -> FlatSegment:
        """The best `total` rows of the layer, those that always stay among them."""
        heads, tokens = prefilled.shape
        if total >= prefilled.rows:
            return keep_all(prefilled)
        recent = self.newest(self.budget.rows(prefilled.geometry) // heads)
        scorable, prefix = tokens - recent, total - heads * recent
        scores = self.score(prefilled, scorable, prefix // heads)
        if prefilled.position is None:  # a document, not a conversation
            scores[:, : min(self.sinks, prefix // heads)] = float("inf")
        scores.masked_fill_(~prefilled.exists[:, :scorable], budgets.ABSENT)
        counts = self.allocate(scores, prefix)
        return keep_ranked(prefilled, self.order(prefilled, scores, counts), counts, recent)
