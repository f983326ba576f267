"""PyramidKV: more entries for the first layers, fewer for the last."""

from dataclasses import dataclass
from typing import ClassVar

from kvchat.engine.methods.shares import Pyramidal


@dataclass(frozen=True)
class PyramidKV(Pyramidal):
    """SnapKV's scores, with entries per layer that fall in a line with its depth.

    PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling,
    https://arxiv.org/abs/2406.02069. Different here: an exact total, computed anew for every
    document, and sinks are kept explicitly. `paper` keeps no sinks.
    """

    name: ClassVar[str] = "pyramidkv"
    PRESETS: ClassVar = {"paper": {"window": 32, "kernel": 7, "pool": "max", "sinks": 0}}
