"""SnapKV: the entries that the last queries attend to."""

from dataclasses import dataclass
from typing import ClassVar

from kvchat.engine.methods.window import WindowEviction


@dataclass(frozen=True)
class SnapKV(WindowEviction):
    """Scores every entry by the attention of the window queries, keeps the best of each head.

    SnapKV: LLM Knows What You are Looking for Before Generation, https://arxiv.org/abs/2404.14469.
    Different here: one selection per KV head (mean over its query heads), fp32 scores with stable
    ties, sinks kept explicitly. `paper` is the authors' LongBench setting.
    """

    name: ClassVar[str] = "snapkv"
    PRESETS: ClassVar = {"paper": {"window": 32, "kernel": 7, "pool": "max", "sinks": 0}}
