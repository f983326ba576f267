"""Methods that observe the last queries: SnapKV and its successors.

They differ in the score, and in how entries are shared out: evenly, over heads by need (Ada-KV),
over layers by depth (PyramidKV), over all layers and heads by need (KV-Compress).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvchat.engine.budget import Geometry
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods import budgets
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.eviction import Eviction
from kvchat.engine.methods.needs import Needs
from kvchat.engine.methods.options import (
    AdaptiveOptions,
    AdaPyramidOptions,
    CORMOptions,
    CriticalAdaOptions,
    CriticalOptions,
    DefensiveOptions,
    KVCompressOptions,
    PyramidOptions,
    SnapOptions,
    WindowOptions,
)
from kvchat.engine.methods.pooled import Pooled
from kvchat.engine.methods.scores import (
    defensive_mass,
    group_mass,
    most_mass,
    pool,
    pooled_mass,
    projected_norm,
    ranked,
)
from kvchat.engine.methods.specs import name_of
from kvchat.errors import KvchatError

SHARES = {"floor": budgets.adaptive, "mix": budgets.mixed}
"""Safeguards for focused heads: floor first, then global; or mixed with even shares."""


@dataclass(frozen=True)
class Window(WindowOptions, Eviction):
    """Observes the last `window` queries, and keeps the entries that they belong to."""

    @property
    def needs(self) -> Needs:
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
        name = name_of(self)
        fitting = [f"{name}:window={each - self.sinks - 1}"] if each > self.sinks + 1 else []
        raise KvchatError(
            "usage",
            f"{name} always keeps the last {self.window} entries and the first "
            f"{self.sinks} of every head; a budget of {self.budget} leaves {each} per head",
            f"--budget {self.budget.of_entries(least, geometry)} or more",
            *fitting,
            entries=each,
            needed=least,
        )


@dataclass(frozen=True)
class SnapKV(SnapOptions, Window):
    """Scores every entry by the attention of the window queries, keeps the best of each head.

    SnapKV: LLM Knows What You are Looking for Before Generation, https://arxiv.org/abs/2404.14469.
    Different here: one selection per KV head (mean over its query heads), fp32 scores with stable
    ties, sinks kept explicitly. `paper` is the authors' LongBench setting. `score_by=squared` takes
    squared attention, pooled per query head (KV-Compress, https://arxiv.org/abs/2410.00161).
    """

    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        """Pooled attention of the observation queries."""
        return pooled_mass(prefilled, entries, self.kernel, self.pool, self.score_by)


@dataclass(frozen=True)
class PyramidKV(PyramidOptions, SnapKV):
    """SnapKV's scores, with entries per layer that fall in a line with its depth.

    PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling,
    https://arxiv.org/abs/2406.02069. The last layer gets 1/`beta` of an even share beside its
    window. Different here: an exact total, where the authors' rounding keeps up to 15 % more,
    computed anew for every document; sinks are kept explicitly. `paper` keeps no sinks.
    """

    def spread(self, total: int, geometry: Geometry) -> list[int]:
        """The newest entries of every layer, and the line over the rest."""
        newest = geometry.heads * self.newest(total // geometry.heads)
        most = geometry.full - newest
        line = budgets.pyramid(total - newest, geometry.layers, most, self.beta)
        return [newest + entries for entries in line]


@dataclass(frozen=True)
class AdaKV(AdaptiveOptions, SnapKV):
    """Pools a layer's budget over its heads: dispersed heads keep more entries than focused ones.

    Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation,
    https://arxiv.org/abs/2407.11550. Each head is sure of the fraction `floor` of an even share.
    Different here: the safeguard is "floor first, then global", so the total is exact and the bound
    is never worse than uniform. `rule=mix` is the authors' safeguard, `paper` all of their setting.
    """

    def allocate(self, scores: Tensor, total: int) -> list[int]:
        """Shares by the pooled ranking of all heads, above the safeguard."""
        return SHARES[self.rule](scores, total, self.floor)


@dataclass(frozen=True)
class AdaPyramid(AdaPyramidOptions, AdaKV, PyramidKV):
    """Ada-KV's shares inside a layer, PyramidKV's over the layers.

    Ada-Pyramid of https://arxiv.org/abs/2407.11550. Floors follow each layer's own budget.
    """


@dataclass(frozen=True)
class KVCompress(KVCompressOptions, Pooled, Window):
    """Squared attention of the last queries, and one budget for all layers and heads.

    KV-Compress: Paged KV-Cache Compression with Variable Compression Rates per Attention Head,
    https://arxiv.org/abs/2410.00161. Attention is squared and summed over the queries, max-pooled
    per query head, summed over the group. Different here: entries leave one by one, where the
    authors free blocks of 16 of a paged store; every head is sure of the fraction `even` of an even
    share, and of its sinks; nothing is evicted while an answer is decoded. `paper` is without both
    safeguards.
    """

    def tables(self, prefilled: Prefilled) -> tuple[Tensor, Tensor]:
        """Pooled squared attention to what stands before the newest entries."""
        recent = self.recent_of(prefilled)
        before = prefilled.shape[1] - recent
        table = pooled_mass(prefilled, before, self.kernel, "max", "squared")
        table = torch.nn.functional.pad(table, (0, recent))
        return table, table


@dataclass(frozen=True)
class CORM(CORMOptions, Window):
    """Evicts what none of the last queries attends to more than to the mean entry.

    CORM: Cache Optimization with Recent Message for LLM Inference,
    https://arxiv.org/abs/2404.15949. To a query that sees t entries one with less than 1/t of its
    attention is minor; what is minor to all of the last `window` queries goes, but for the entries
    of these. Different here: that rule finds its own size only with `mode=rule` (`paper`); else
    entries rank by the largest multiple of 1/t that a query gives them, and the budget is met. A
    document is evicted once, at its end; sinks stay.
    """

    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        return pool(most_mass(prefilled, entries, shares=True), self.kernel, "max")

    def compress(self, prefilled: Prefilled) -> FlatSegment:
        if self.mode == "budget":
            return super().compress(prefilled)
        _, tokens = prefilled.shape
        kept = self.score(prefilled, tokens, tokens) >= 1
        kept[:, : self.sinks] = True
        kept[:, tokens - min(self.window, tokens) :] = True
        return prefilled.keep(kept & prefilled.exists)

    def extend(self, prefilled: Prefilled) -> FlatSegment:
        """A conversation has a budget in any case."""
        return self.reduce(prefilled, self.share(prefilled))


@dataclass(frozen=True)
class Critical(CriticalOptions, SnapKV):
    """Half of a head's entries by attention, the rest by attention times the projected value's
    norm.

    Identify Critical KV Cache in LLM Inference from an Output Perturbation Perspective,
    https://arxiv.org/abs/2502.03805. `first` is the share that attention alone decides; it makes
    the rest provably useful. `epsilon` is added to the attention before it is weighed.
    """

    def order(self, prefilled: Prefilled, scores: Tensor, counts: list[int]) -> Tensor:
        """Entries that attention alone decides first, then by the weighed score."""
        by_attention = ranked(scores)
        sure = (torch.tensor(counts) * self.first).int().to(scores.device)
        rank = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
        decided = torch.zeros_like(scores, dtype=torch.bool)
        decided.scatter_(1, by_attention, rank < sure[:, None])
        decided |= scores == float("inf")
        weighed = (scores + self.epsilon) * projected_norm(prefilled, scores.shape[1])
        weighed = weighed.masked_fill(decided, float("inf"))
        return ranked(weighed.masked_fill(scores == budgets.ABSENT, budgets.ABSENT))


@dataclass(frozen=True)
class CriticalAda(CriticalAdaOptions, Critical, AdaKV):
    """CriticalKV's two stages over Ada-KV's shares of the heads.

    CriticalAdaKV of https://arxiv.org/abs/2502.03805.
    """


@dataclass(frozen=True)
class DefensiveKV(DefensiveOptions, Window):
    """Keeps entries that any observation query needs, weighed by the projected value's norm.

    Taming the Fragility of KV Cache Eviction in LLM Inference (ICLR 2026),
    https://arxiv.org/abs/2510.13334. Entries that carry a head's mean attention up to the share
    `secure` stay in any case, the rest of the layer's entries goes to the best defensive scores of
    all heads. Different here: what the window itself receives counts towards `secure`, where the
    authors' code takes the entries before the window for it. Smoothing is by mean.
    """

    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        """Defensive mass times the head's share of the value norms; secured entries: inf."""
        heads, _ = prefilled.shape
        norm = projected_norm(prefilled, entries)
        scores = defensive_mass(prefilled, entries, self.kernel)
        scores *= norm / prefilled.every(norm).sum(dim=0).clamp_min(1e-30)
        mean = group_mass(prefilled, entries)
        best, order = torch.sort(mean, dim=1, descending=True, stable=True)
        missing = self.secure - (
            1 - mean.sum(dim=1, keepdim=True)
        )  # beyond the entries scored here
        secured = (best.cumsum(dim=1) < missing).sum(dim=1).clamp(max=max(each - self.sinks, 0))
        rank = torch.arange(entries, device=scores.device).expand(heads, entries)
        certain = torch.zeros_like(scores, dtype=torch.bool)
        certain.scatter_(1, order, rank < secured[:, None])
        return scores.masked_fill(certain, float("inf"))

    def allocate(self, scores: Tensor, total: int) -> list[int]:
        """The best scores of all heads together; secured entries are the floor."""
        return budgets.adaptive(scores, total, floor=0.0)
