"""Observing the last queries, and two ways to share entries out: over heads by need, over layers by
depth. What SnapKV and its successors have in common."""

from dataclasses import dataclass

from torch import Tensor

from kvchat.engine.budget import Geometry
from kvchat.engine.methods import budgets
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.eviction import Eviction
from kvchat.engine.methods.needs import Needs
from kvchat.engine.methods.options import (
    AdaptiveOptions,
    PyramidOptions,
    SnapOptions,
    WindowOptions,
)
from kvchat.engine.methods.scores import pooled_mass
from kvchat.errors import KvchatError

SHARES = {"floor": budgets.adaptive, "mix": budgets.mixed}
"""Safeguards for focused heads: floor first, then global; or mixed with even shares."""


@dataclass(frozen=True)
class Window(WindowOptions, Eviction):
    """Observes the last `window` queries, and keeps the entries that they belong to."""

    @property
    def needs(self) -> Needs:
        """The observation window W."""
        return Needs(queries=self.window)

    def newest(self, each: int) -> int:
        """The window itself, at most half of an even share."""
        return min(self.window, max(1, each // 2))

    def require_room(self, total: int, geometry: Geometry) -> None:
        """A budget given as a size suffices for window, sinks and an entry beside them.

        A share of a short document need not: it protects fewer entries, and leaves some to choose.
        """
        each, least = total // geometry.heads, self.window + self.sinks + 1
        if self.budget.fraction is not None or total == geometry.full or each >= least:
            return
        fitting = [f"{self.name}:window={each - self.sinks - 1}"] if each > self.sinks + 1 else []
        raise KvchatError(
            "usage",
            f"{self.name} always keeps the last {self.window} entries and the first "
            f"{self.sinks} of every head; a budget of {self.budget} leaves {each} per head",
            f"--budget {self.budget.of_entries(least, geometry)} or more",
            *fitting,
            entries=each,
            needed=least,
        )


@dataclass(frozen=True)
class WindowEviction(SnapOptions, Window):
    """Scores entries by what the observation queries attend to, smoothed by `pool`.

    `score_by=squared` takes squared attention, pooled per query head (KV-Compress,
    https://arxiv.org/abs/2410.00161).
    """

    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        """Pooled attention of the observation queries."""
        return pooled_mass(prefilled, entries, self.kernel, self.pool, self.score_by)


@dataclass(frozen=True)
class Adaptive(AdaptiveOptions, WindowEviction):
    """Ada-KV's shares (https://arxiv.org/abs/2407.11550): the best scores of all heads together.

    Each head is sure of the fraction `floor` of an even share; `rule=mix` is the authors' own
    safeguard.
    """

    def allocate(self, scores: Tensor, total: int) -> list[int]:
        """Shares by the pooled ranking of all heads, above the safeguard."""
        return SHARES[self.rule](scores, total, self.floor)


@dataclass(frozen=True)
class Pyramidal(PyramidOptions, WindowEviction):
    """PyramidKV's layer budgets (https://arxiv.org/abs/2406.02069): a falling line.

    The last layer gets 1/`beta` of an even share beside its window. All layers together keep
    exactly the budget, where the authors' rounding keeps up to 15 % more.
    """

    def spread(self, total: int, geometry: Geometry) -> list[int]:
        """The newest entries of every layer, and the line over the rest."""
        newest = geometry.heads * self.newest(total // geometry.heads)
        most = geometry.full - newest
        line = budgets.pyramid(total - newest, geometry.layers, most, self.beta)
        return [newest + entries for entries in line]
