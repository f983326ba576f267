"""Ada-KV: SnapKV's scores with a budget that is shared out among the heads of a layer."""

from dataclasses import dataclass
from typing import ClassVar

from kvchat.engine.methods.shares import Adaptive, Pyramidal


@dataclass(frozen=True)
class AdaKV(Adaptive):
    """Pools a layer's budget over its heads: dispersed heads keep more entries than focused ones.

    Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation,
    https://arxiv.org/abs/2407.11550. Different here: the safeguard is "floor first, then global",
    so the total is exact and the bound is never worse than uniform. `paper` is the authors'
    setting with their safeguard.
    """

    name: ClassVar[str] = "adakv"


@dataclass(frozen=True)
class AdaPyramid(Adaptive, Pyramidal):
    """Ada-KV's shares inside a layer, PyramidKV's over the layers.

    Ada-Pyramid of https://arxiv.org/abs/2407.11550. Floors follow each layer's own budget.
    """

    name: ClassVar[str] = "ada-pyramid"
