"""DefensiveKV: the worst case over the observation queries in place of their mean."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvchat.engine.methods import budgets
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.options import DefensiveOptions
from kvchat.engine.methods.scores import defensive_mass, group_mass, projected_norm
from kvchat.engine.methods.window import Window


@dataclass(frozen=True)
class DefensiveKV(DefensiveOptions, Window):
    """Keeps entries that any observation query needs, weighed by the projected value's norm.

    Taming the Fragility of KV Cache Eviction in LLM Inference (ICLR 2026),
    https://arxiv.org/abs/2510.13334. Entries that carry a head's mean attention up to the share
    `secure` stay in any case, the rest of the layer's entries goes to the best defensive scores of
    all heads. Different here: what the window itself receives counts towards `secure`, where the
    authors' code takes the entries before the window for it. Smoothing is by mean.
    """

    name: ClassVar[str] = "defensivekv"

    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        """Defensive mass times the head's share of the value norms; secured entries are
        infinite.
        """
        heads, _ = prefilled.shape
        norm = projected_norm(prefilled, entries)
        scores = defensive_mass(prefilled, entries, self.kernel)
        scores *= norm / norm.sum(dim=0).clamp_min(1e-30)
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
