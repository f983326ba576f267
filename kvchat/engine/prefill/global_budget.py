"""One budget for all layers while they are read one by one. Knows no model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kvchat.engine.budget import Geometry
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods.base import Method, Pools, Prefilled
from kvchat.engine.methods.stage import Stage, pools


class Pool:
    """The layers of a cache, of which only the best entries stay, however far the reading is.

    An entry that is not among the best of the layers so far cannot be among the best of all: so the
    choice is the same as if all layers had been there at once, and never more than the budget and
    one layer is held. Of equal entries those of an earlier layer stay.
    """

    def __init__(self, method: Method, layers: Sequence[LayerCache], geometry: Geometry):
        self.method = method
        self.layers = layers
        self.entries = (
            method.pool(geometry) if pools(method) and isinstance(method, Pools) else None
        )
        self.worth: list[Tensor] = []
        self.notes: list = []

    def take(self, prefilled: Prefilled) -> None:
        """Compress the next layer and let it compete with those before."""
        layer = self.layers[prefilled.layer]
        segment = self.method.compress(prefilled)
        after = segment.span[1] - prefilled.start  # entries from here on stay in the tail
        layer.adopt(segment, prefilled.keys[:, after:], prefilled.values[:, after:])
        if self.entries is None:
            return
        assert isinstance(segment, FlatSegment) and isinstance(self.method, Pools), segment.kind
        self.worth.append(self.method.worth(prefilled, segment))
        if isinstance(self.method, Stage):
            self.notes.append(self.method.note(prefilled))
        if sum(map(len, self.worth)) > self.entries:
            self._drop(self.entries)

    def finish(self) -> None:
        """All layers are read: store what is left as the method does."""
        if self.entries is not None and isinstance(self.method, Stage):
            for layer, note in zip(self.layers, self.notes, strict=True):
                layer.segments = [self.method.finish(layer.segments[0], note)]

    def _drop(self, entries: int) -> None:
        every = torch.cat(self.worth)
        kept = torch.zeros_like(every, dtype=torch.bool)
        kept[torch.sort(every, descending=True, stable=True).indices[:entries]] = True
        for number, chosen in enumerate(kept.split([len(part) for part in self.worth])):
            layer, (segment,) = self.layers[number], self.layers[number].segments
            if bool(chosen.all()):
                continue
            assert isinstance(segment, FlatSegment), segment.kind
            layer.segments = [segment.where(chosen)]
            self.worth[number] = self.worth[number][chosen]
