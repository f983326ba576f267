"""Knorm: entries whose keys are short."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.eviction import Eviction
from kvchat.engine.methods.options import KnormOptions


@dataclass(frozen=True)
class Knorm(KnormOptions, Eviction):
    """Keeps the entries with the smallest key norms, which tend to be attended most.

    A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression,
    https://arxiv.org/abs/2406.11430. Different here: sinks and the newest entry always stay.
    """

    name: ClassVar[str] = "knorm"

    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        """The shorter, the better."""
        norm: Tensor = prefilled.keys[:, :entries].float().norm(dim=-1)
        return -norm
