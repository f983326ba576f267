"""Ada-KV: SnapKV's scores with a budget that is shared out among the heads of a layer."""

from dataclasses import dataclass

from torch import Tensor

from kvchat.engine.methods import budgets
from kvchat.engine.methods.window import WindowEviction
from kvchat.errors import KvchatError


@dataclass(frozen=True)
class AdaKV(WindowEviction):
    """Pools a layer's budget over its heads: dispersed heads keep more rows than focused ones.

    Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation,
    https://arxiv.org/abs/2407.11550. Different here: the safeguard is "floor first, then global"
    (each head is sure of the fraction `floor` of an even share), so the total is exact and the
    bound is never worse than uniform; see `budgets.adaptive`.
    """

    floor: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.floor <= 1:
            raise KvchatError("usage", f"adakv: floor={self.floor:g} is outside 0–1", "floor=0.2")

    def allocate(self, scores: Tensor, total: int) -> Tensor:
        """Shares by the pooled ranking of all heads, above the floor."""
        return budgets.adaptive(scores, total, self.floor)
