"""SnapKV: the rows that the last queries attend to."""

from dataclasses import dataclass

from torch import Tensor

from kvchat.engine.methods import budgets
from kvchat.engine.methods.window import WindowEviction


@dataclass(frozen=True)
class SnapKV(WindowEviction):
    """Scores every prefix row by the attention of the window queries, keeps the best per head.

    SnapKV: LLM Knows What You are Looking for Before Generation, https://arxiv.org/abs/2404.14469.
    Different here: one selection per KV head (mean over its query heads), fp32 scores with stable
    ties, sinks kept explicitly, max-pooling of 7 as in the authors' LongBench settings.
    """

    def allocate(self, scores: Tensor, total: int) -> Tensor:
        """The same number of rows in every head."""
        heads, rows = scores.shape
        return budgets.uniform(total, heads, rows)
