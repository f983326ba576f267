"""Cascading KV cache: a conversation without end in a bounded tail. A policy of the tail, no method
of documents.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvchat.engine.budget import Budget, Geometry
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods.base import Method, Prefilled
from kvchat.engine.methods.needs import Needs

SINKS = 4  # first tokens of a conversation without a document, which always stay


@dataclass(frozen=True)
class Cascade(Method):
    """Levels of `size` entries per KV head, each of which keeps one of two that leave the level
    before it.

    Training-Free Exponential Context Extension via Cascading KV Cache,
    https://arxiv.org/abs/2406.17808. The first level are the newest turns, in the live tail; the
    others stand before them. So `levels` levels see `size * (2**levels - 1)` tokens, the older the
    fewer of them. Of two neighbours the one stays that was attended to more, the later one if both
    were alike. Different here: whole turns leave the first level, scores are sums in place of
    moving averages with a factor near 1, and heads choose by themselves.
    """

    gathers: ClassVar[bool] = True

    levels: int
    size: int

    @property
    def budget(self) -> Budget:
        """What stands before the live tail."""
        return Budget(entries_per_head=(self.levels - 1) * self.size + SINKS)

    @property
    def watches(self) -> Needs:
        """The attention that every entry of the conversation receives."""
        return Needs(column_mass=True)

    def entries(self, geometry: Geometry) -> list[int]:
        return [self.budget.entries(geometry)] * geometry.layers

    def compress(self, prefilled: Prefilled) -> FlatSegment:
        raise NotImplementedError("documents are compressed by their own method")

    def extend(self, prefilled: Prefilled) -> FlatSegment:
        """What stays of old entries and of turns that join them; `count` is how many tokens an
        entry was chosen from, so it tells its level."""
        assert prefilled.column_mass is not None, "compaction gives what `watches` names"
        heads, entries = prefilled.shape
        mass, device = prefilled.column_mass, prefilled.keys.device
        counts = torch.ones(entries) if prefilled.count is None else prefilled.count[0].cpu()
        sinks = min(SINKS, entries) if prefilled.start == 0 else 0
        every = torch.arange(entries, device=device).expand(heads, -1)
        kept, wins = [], every[:, sinks:][:, :0]  # the latter: who comes from the level before
        for level in range(self.levels):
            own = (counts[sinks:] == 2**level).to(device)
            queue = torch.cat((every[:, sinks:][:, own], wins), dim=1)
            room = self.size if level else 0  # the first level is the live tail
            leaving = max(0, queue.shape[1] - room)
            if level < self.levels - 1:
                leaving -= leaving % 2  # the odd one waits for its neighbour
                wins = winners(queue[:, :leaving], mass)
            kept.append((queue[:, leaving:], 2**level))
        parts = [(every[:, :sinks], 1), *reversed(kept)]
        chosen = torch.cat([part for part, _ in parts], dim=1)  # [H, n], ascending
        stands = [part.new_full(part.shape, tokens) for part, tokens in parts]
        return self._segment(prefilled, chosen, torch.cat(stands, dim=1))

    def _segment(self, prefilled: Prefilled, chosen: Tensor, count: Tensor) -> FlatSegment:
        heads, number = chosen.shape
        head = torch.arange(heads, device=chosen.device)[:, None]
        k, v = (each[head, chosen].flatten(0, 1) for each in (prefilled.keys, prefilled.values))
        position = torch.arange(*prefilled.span, device=chosen.device).expand(heads, -1)
        if prefilled.position is not None:
            position = prefilled.position
        at, span = position[head, chosen].flatten(), prefilled.span
        return FlatSegment.of(k, v, [number] * heads, at, span, None, count.flatten().int())


def winners(queue: Tensor, mass: Tensor) -> Tensor:
    """Of every two of `queue [H, 2n]` the one of more `mass [H, E]`, `[H, n]`; alike: the later."""
    pairs = queue.unflatten(1, (-1, 2))
    older, newer = mass.gather(1, pairs[..., 0]), mass.gather(1, pairs[..., 1])
    return torch.where(newer >= older, pairs[..., 1], pairs[..., 0])
