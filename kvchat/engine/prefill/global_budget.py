"""One budget for all layers, while the prefill goes through them one by one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvchat.engine.budget import Geometry
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods import budgets
from kvchat.engine.methods.base import Method, Prefilled
from kvchat.engine.prefill.evicted import Evicted


@dataclass
class Known:
    """Entries of a layer that still matter, head after head: those that are kept so far, and those
    that raise the share of their head.

    `worth, rank, head, held, mine [n]`: what each is worth beside those of other heads, how many
    entries of its own head go before it, whose it is, whether it is kept, and by this process.
    """

    worth: Tensor
    rank: Tensor
    head: Tensor
    held: Tensor
    mine: Tensor

    def where(self, chosen: Tensor) -> "Known":
        """The entries for which `chosen [n]` is true."""
        at = chosen.nonzero()[:, 0]
        every = (getattr(self, name) for name in self.__dataclass_fields__)
        return Known(*(each.index_select(0, at) for each in every))


class Pool:
    """The layers of a cache that share one budget, however far the prefill is.

    Of the budget each head has the fraction `method.even` in any case, and as much of the rest as
    it has entries among the best of all layers. Which of its entries it keeps is its own affair. An
    entry that is not among the best of the layers so far cannot be among the best of all, and a
    head's share never grows: so the choice is the same as if all layers had been there at once, and
    never more than the budget and one layer is alive. Of equal entries those of an earlier layer
    stay. With `method.means` a few entries of every head stand for those that went.
    """

    def __init__(self, method: Method, layers: Sequence[LayerCache], geometry: Geometry):
        self.method = method
        self.layers = layers
        self.heads = geometry.heads
        self.entries = method.together(geometry)
        self.known: list[Known] = []
        self.evicted: list[Evicted] = []
        self.within: list[Tensor] = []  # what the entries that stay are worth within their heads
        self.means = 0
        if self.entries is not None and self.entries < geometry.layers * geometry.full:
            means = method.means * len(layers) * self.heads
            if self.entries >= means + len(layers) * self.heads:  # or nothing else would stay
                self.means, self.entries = method.means, self.entries - means

    def take(self, prefilled: Prefilled) -> None:
        """Compress the next layer and let it compete with those before."""
        layer = self.layers[prefilled.layer]
        segment = self.method.compress(prefilled)
        after = segment.span[1] - prefilled.start  # entries from here on stay in the tail
        if self.entries is None:
            segment = self.method.stored(segment)
        layer.adopt(segment, prefilled.keys[:, after:], prefilled.values[:, after:])
        if self.entries is None:
            return
        assert isinstance(segment, FlatSegment), segment.kind
        worth, within = self.method.worth(prefilled, segment)
        if self.means:
            self.evicted.append(Evicted(prefilled.keys, self.means, prefilled.peers))
            self.within.append(within)
        heads = torch.arange(self.heads, device=worth.device)
        lengths = torch.tensor(segment.lengths, device=worth.device)
        ranks = _ranks(within, segment.lengths)
        # every rank knows what the entries of all heads are worth, and so decides as the others
        (worth, own), (ranks, _) = (prefilled.peers.ragged(each) for each in (worth, ranks))
        owner = heads.repeat_interleave(prefilled.every(lengths))
        held = torch.ones_like(worth, dtype=torch.bool)
        mine = torch.zeros_like(held)
        mine[own] = True
        self.known.append(Known(worth, ranks, owner, held, mine))
        if sum(len(each.worth) for each in self.known) > self.entries:
            self._drop(self.entries)

    def finish(self) -> None:
        """All layers are there: store what is left as the method does."""
        if self.entries is None:
            return
        for number, layer in enumerate(self.layers):
            (segment,) = layer.segments
            if self.means:
                assert isinstance(segment, FlatSegment), segment.kind
                segment = self.evicted[number].among(segment)
            layer.segments = [self.method.stored(segment)]

    def _drop(self, entries: int) -> None:
        every = torch.cat([each.worth for each in self.known])
        pooled = torch.split(_best(every, entries), [len(each.worth) for each in self.known])
        counts = [
            torch.bincount(each.head[among], minlength=self.heads).tolist()
            for each, among in zip(self.known, pooled, strict=True)
        ]
        shares = self._shares([count for layer in counts for count in layer], entries)
        for number, among in enumerate(pooled):
            known = self.known[number]
            own = shares[number * self.heads : (number + 1) * self.heads]
            kept = known.held & (known.rank < torch.tensor(own, device=among.device)[known.head])
            stays = kept[known.held & known.mine]
            if not bool(stays.all()):
                (segment,) = self.layers[number].segments
                assert isinstance(segment, FlatSegment), segment.kind
                if self.means:
                    self.evicted[number].take(segment, stays, self.within[number])
                    self.within[number] = self.within[number][stays]
                self.layers[number].segments = [segment.where(stays)]
            known.held = kept
            self.known[number] = known.where(kept | among)

    def _shares(self, pooled: list[int], entries: int) -> list[int]:
        """What each head of the layers so far may keep, `pooled` of it being among the best.

        Layers to come have their even share too, so it is rounded up until the last one is there.
        """
        heads = self.heads * len(self.layers)
        return budgets.shared(pooled, entries, heads, self.method.even)


def _best(worth: Tensor, count: int) -> Tensor:
    """Where the `count` largest of `worth [n]` stand (bool); of equal ones the first ones."""
    least = worth.kthvalue(len(worth) - count + 1).values
    best = worth > least
    level = (worth == least).nonzero()[:, 0]
    best[level[: count - int(best.sum())]] = True
    return best


def _ranks(worth: Tensor, lengths: Sequence[int]) -> Tensor:
    """How many entries of the same head are worth more, or as much and come before, `[n]`.

    Head after head, of so many entries each.
    """
    found = []
    for own in torch.split(worth, list(lengths)):
        order = torch.sort(own, descending=True, stable=True).indices
        ranks = torch.empty_like(order)
        ranks[order] = torch.arange(len(order), device=order.device)
        found.append(ranks)
    return torch.cat(found)
