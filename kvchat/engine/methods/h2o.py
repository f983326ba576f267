"""H2O: heavy hitters and recent entries."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.eviction import Eviction
from kvchat.engine.methods.needs import Needs
from kvchat.engine.methods.options import H2OOptions


@dataclass(frozen=True)
class H2O(H2OOptions, Eviction):
    """Keeps the newest entries and those that all queries so far attended to most.

    H2O: Heavy-Hitter Oracle, https://arxiv.org/abs/2306.14048. `recent` is the share of the budget
    that goes to the newest entries. `average` divides an entry's sum by the number of queries that
    could see it, which early entries need not fear then. Different here: sums over the whole
    document are exact and computed in a second pass from the known log-sum-exps, without a T x T
    matrix; they are summed over the query heads of a KV head.
    """

    name: ClassVar[str] = "h2o"

    @property
    def needs(self) -> Needs:
        """Column sums over all queries."""
        return Needs(column_mass=True)

    def newest(self, each: int) -> int:
        """The recent share of the budget, and the newest entry in any case."""
        return min(each, max(1, int(self.recent * each)))

    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        """The attention that an entry has received."""
        assert prefilled.column_mass is not None, "the prefill gives what `needs` names"
        mass = prefilled.column_mass[:, :entries].clone()
        if self.average:
            tokens = prefilled.shape[1]
            mass /= tokens - torch.arange(entries, device=mass.device)
        return mass
