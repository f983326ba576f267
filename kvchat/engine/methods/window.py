"""Options and steps that methods with an observation window share. Not a method itself."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from kvchat.engine.budget import DEFAULT_BUDGET, Budget
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.evict import keep_all, keep_ranked
from kvchat.engine.methods.scores import POOLS, observed_mass, pool, ranked
from kvchat.errors import KvchatError


@dataclass(frozen=True)
class WindowEviction(ABC):
    """Scores the prefix by the observation queries, keeps the best rows and the last `window`.

    `window` rows and the first `sinks` rows are always kept and paid from the budget. A budget of
    fewer than `2 * window` rows per head shrinks the protected window to half of it, so that
    short documents and small budgets leave rows to choose.
    """

    budget: Budget = DEFAULT_BUDGET
    window: int = 32
    kernel: int = 7
    pool: str = "max"
    sinks: int = 4

    def __post_init__(self) -> None:
        name = type(self).__name__.lower()
        if not 1 <= self.window < 2**31:
            raise KvchatError("usage", f"{name}: window={self.window} is not a size", "window=32")
        if not 1 <= self.kernel < 2**15 or self.kernel % 2 == 0:
            raise KvchatError(
                "usage", f"{name}: kernel={self.kernel} must be odd and below 32,768", "kernel=7"
            )
        if self.pool not in POOLS:
            tries = [f"pool={kind}" for kind in POOLS]
            raise KvchatError("usage", f"{name}: pool={self.pool} is unknown", *tries)
        if self.sinks < 0:
            raise KvchatError("usage", f"{name}: sinks={self.sinks} is negative", "sinks=4")

    @property
    def observed(self) -> int:
        """The observation window W."""
        return self.window

    @abstractmethod
    def allocate(self, scores: Tensor, total: int) -> Tensor:
        """Rows of the prefix that each head keeps, `[H]`, `total` in all; `scores [H, N]`."""

    def compress(self, prefilled: Prefilled) -> FlatSegment:
        """The best rows of each head, its sinks and its last rows; `budget` in all."""
        heads, tokens = prefilled.shape
        total = prefilled.allowed(self.budget)
        if total == heads * tokens:
            return keep_all(prefilled)
        recent = min(self.window, max(1, total // heads // 2))
        scorable = tokens - recent
        scores = pool(observed_mass(prefilled, scorable), self.kernel, self.pool)
        prefix = total - heads * recent
        scores[:, : min(self.sinks, prefix // heads)] = float("inf")
        counts = self.allocate(scores, prefix)
        return keep_ranked(prefilled, ranked(scores), counts, recent)
