"""A document that is longer than the context window: where its parts are read, and where they stand
once all is read."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.model.decoder import Decoder
from kvchat.engine.model.layers import Rotation
from kvchat.engine.prefill.observation import Observation
from kvchat.engine.prefill.walk import AnyLayer


@dataclass(frozen=True)
class Behind:
    """What a part of a document stands behind: the `cache` of those before it.

    It stands from position `start` on once it is read; the whole document has so many `tokens`.
    """

    cache: KVCache
    start: int
    tokens: int

    def left(self, tokens: int) -> int:
        """Tokens of the document that follow a part of `tokens`."""
        return self.tokens - self.cache.position - tokens

    def under(self, layer: AnyLayer, number: int, full: Sequence[int]) -> int:
        """Put the earlier parts before the empty tail of a layer, the model's `number`th.

        `full` are those that attend to all tokens. Returns the entries that the tail then has.
        """
        if isinstance(layer, LayerCache):
            layer.segments = self.cache.layers[full.index(number)].segments
            layer.tail.start = self.cache.position
            return 0
        window = self.cache.windows[number].tail
        layer.tail.start = window.start
        layer.tail.append(window.keys, window.values)
        return window.length


class Moves:
    """The way of a part's entries from where they were read to where they stand at last.

    All move as far, so what they are to each other stays; keys are turned by the difference of both
    positions, and so are the queries that score them.
    """

    def __init__(self, model: Decoder, behind: Behind, tokens: int):
        self.end = behind.start + tokens  # the position after the part
        by = torch.tensor([behind.start - behind.cache.rotary], device=model.device)
        self._turns = model.rotations(by)

    def move(
        self, layer: AnyLayer, rope: int, document: Observation, probes: Sequence[Observation]
    ) -> None:
        """Move the entries of a layer's tail, and the queries of document and probes."""
        keys, turn = layer.tail.keys, self._turns[rope]
        keys.copy_(turned(keys.transpose(0, 1), turn).transpose(0, 1))
        for observed in (document, *probes):
            if observed.window is not None:
                queries, lse = observed.window
                observed.window = turned(queries, turn), lse


def turned(x: Tensor, rotation: Rotation) -> Tensor:
    """`x [T, heads, D]`, turned by rotations of T positions or of one."""
    cos, sin = (each.expand(len(x), -1).contiguous() for each in rotation[:2])
    return ops.rope(x, cos, sin)
