"""kvzip that keeps nothing: it is given what a gate tells and what replays show, layer by layer."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from kvchat.engine.budget import Geometry
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.kvzip import KVzip, together
from kvchat.engine.methods.needs import GATE, Needs

LEAST = 1e-8  # of a score, whose logarithm counts


@dataclass(frozen=True)
class Listener(KVzip):
    """A method for what it hears; a member says what it does with that."""

    @property
    def needs(self) -> Needs:
        return Needs(replay_scores=frozenset({*self.scores, GATE}))

    def together(self, geometry: Geometry) -> None:  # type: ignore[override]
        """Its layers share nothing."""

    def entries(self, geometry: Geometry) -> list[int]:
        return [0] * geometry.layers

    def compress(self, prefilled: Prefilled) -> FlatSegment:
        """Nothing is kept."""
        assert prefilled.told is not None
        self.hear(
            prefilled, together([prefilled.told[each] for each in self.scores], prefilled.peers)
        )
        return prefilled.keep(torch.zeros_like(prefilled.exists))

    @abstractmethod
    def hear(self, prefilled: Prefilled, shown: Tensor) -> None:
        """Take in a layer; `shown [H, T]` are the scores of replays, infinite where none is."""
