"""SnapKV and its kin: the entries that the last queries attend to, with a budget that is even,
falls with depth (PyramidKV), or is shared out among the heads of a layer (Ada-KV)."""

from dataclasses import dataclass
from typing import ClassVar

from kvchat.engine.methods.options import AdaPyramidOptions
from kvchat.engine.methods.window import Adaptive, Pyramidal, WindowEviction


@dataclass(frozen=True)
class SnapKV(WindowEviction):
    """Scores every entry by the attention of the window queries, keeps the best of each head.

    SnapKV: LLM Knows What You are Looking for Before Generation, https://arxiv.org/abs/2404.14469.
    Different here: one selection per KV head (mean over its query heads), fp32 scores with stable
    ties, sinks kept explicitly. `paper` is the authors' LongBench setting.
    """

    name: ClassVar[str] = "snapkv"


@dataclass(frozen=True)
class PyramidKV(Pyramidal):
    """SnapKV's scores, with entries per layer that fall in a line with its depth.

    PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling,
    https://arxiv.org/abs/2406.02069. Different here: an exact total, computed anew for every
    document, and sinks are kept explicitly. `paper` keeps no sinks.
    """

    name: ClassVar[str] = "pyramidkv"


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
class AdaPyramid(AdaPyramidOptions, Adaptive, Pyramidal):
    """Ada-KV's shares inside a layer, PyramidKV's over the layers.

    Ada-Pyramid of https://arxiv.org/abs/2407.11550. Floors follow each layer's own budget.
    """

    name: ClassVar[str] = "ada-pyramid"
