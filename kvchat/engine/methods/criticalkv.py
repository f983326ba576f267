"""CriticalKV: attention weighed by what a value can change in the output."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvchat.engine.methods import budgets
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.options import CriticalAdaOptions, CriticalOptions
from kvchat.engine.methods.scores import projected_norm, ranked
from kvchat.engine.methods.window import Adaptive, WindowEviction


@dataclass(frozen=True)
class Critical(CriticalOptions, WindowEviction):
    """Half of a head's entries by attention, the rest by attention times the projected value's
    norm.

    Identify Critical KV Cache in LLM Inference from an Output Perturbation Perspective,
    https://arxiv.org/abs/2502.03805. `first` is the share that attention alone decides; it makes
    the rest provably useful. `epsilon` is added to the attention before it is weighed.
    """

    name: ClassVar[str] = "criticalkv"

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
class CriticalAda(CriticalAdaOptions, Critical, Adaptive):
    """CriticalKV's two stages over Ada-KV's shares of the heads.

    CriticalAdaKV of https://arxiv.org/abs/2502.03805.
    """

    name: ClassVar[str] = "critical-adakv"
