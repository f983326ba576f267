"""Two ways to share entries out that methods inherit: over heads by need, over layers by depth. Not
methods themselves."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvchat.engine.budget import Geometry
from kvchat.engine.methods import budgets
from kvchat.engine.methods.checks import require_known, require_least, require_share
from kvchat.engine.methods.window import WindowEviction

RULES = {"floor": budgets.adaptive, "mix": budgets.mixed}
"""Safeguards for focused heads: floor first, then global; or mixed with even shares."""


@dataclass(frozen=True)
class Adaptive(WindowEviction):
    """Ada-KV's shares (https://arxiv.org/abs/2407.11550): the best scores of all heads together.

    Each head is sure of the fraction `floor` of an even share; `rule=mix` is the authors' own
    safeguard, `paper` their setting.
    """

    floor: float = 0.2
    rule: str = "floor"
    PRESETS: ClassVar = {
        "paper": {"window": 32, "kernel": 7, "pool": "max", "sinks": 0, "rule": "mix"}
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(self, "floor", 0.2)
        require_known(self, "rule", tuple(RULES))

    def allocate(self, scores: Tensor, total: int) -> list[int]:
        """Shares by the pooled ranking of all heads, above the safeguard."""
        return RULES[self.rule](scores, total, self.floor)


@dataclass(frozen=True)
class Pyramidal(WindowEviction):
    """PyramidKV's layer budgets (https://arxiv.org/abs/2406.02069): a falling line.

    The last layer gets 1/`beta` of an even share beside its window. All layers together keep
    exactly the budget, where the authors' rounding keeps up to 15 % more.
    """

    beta: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, "beta", 1, 20)

    def spread(self, total: int, geometry: Geometry) -> list[int]:
        """The newest entries of every layer, and the line over the rest."""
        newest = geometry.heads * self.newest(total // geometry.heads)
        most = geometry.full - newest
        line = budgets.pyramid(total - newest, geometry.layers, most, self.beta)
        return [newest + entries for entries in line]
