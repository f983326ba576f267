"""One budget for all layers, while the prefill goes through them one by one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kvchat.engine.budget import Geometry
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods.base import Method, Prefilled


class Pool:
    """The layers of a cache, of which only the best entries stay, however far the prefill is.

    An entry that is not among the best of the layers so far cannot be among the best of all: so the
    choice is the same as if all layers had been there at once, and never more than the budget and
    one layer is alive. Of equal entries those of an earlier layer stay.
    """

    def __init__(self, method: Method, layers: Sequence[LayerCache], geometry: Geometry):
        self.method = method
        self.layers = layers
        self.entries = method.together(geometry)
        self.worth: list[Tensor] = []

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
        self.worth.append(self.method.worth(prefilled, segment))
        if sum(map(len, self.worth)) > self.entries:
            self._drop(self.entries)

    def finish(self) -> None:
        """All layers are there: store what is left as the method does."""
        if self.entries is not None:
            for layer in self.layers:
                layer.segments = [self.method.stored(layer.segments[0])]

    def _drop(self, entries: int) -> None:
        every = torch.cat(self.worth)
        kept = torch.zeros_like(every, dtype=torch.bool)
        kept[torch.sort(every, descending=True, stable=True).indices[:entries]] = True
        parts = torch.split(kept, [len(part) for part in self.worth])
        for number, chosen in enumerate(parts):
            layer, (segment,) = self.layers[number], self.layers[number].segments
            if bool(chosen.all()):
                continue
            assert isinstance(segment, FlatSegment), segment.kind
            layer.segments = [segment.where(chosen)]
            self.worth[number] = self.worth[number][chosen]
