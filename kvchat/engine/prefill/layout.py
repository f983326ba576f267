"""Where the tokens of a document stand that is longer than the context window."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.cache.layer import KVCache, LayerCache
from kvchat.engine.model.decoder import Decoder
from kvchat.engine.model.layers import Rotation
from kvchat.engine.prefill.observation import Observation
from kvchat.engine.prefill.walk import AnyLayer
from kvchat.engine.sizes import Streamed

SINKS = 16  # first tokens that stay where they are


def places(streamed: Streamed, tokens: Tensor) -> Tensor:
    """The positions where entries of `tokens` (int64) stand once the whole document is read.

    While a part is read it stands behind those before it, one token after the other, as the model
    was trained. Afterwards its entries move together: several tokens share a position, as in
    SelfExtend (arXiv 2401.01325), but for the first `SINKS`.
    """
    sinks = min(SINKS, streamed.room - 1)
    share = streamed.room - sinks, streamed.tokens - sinks
    return torch.where(tokens < sinks, tokens, (tokens - sinks) * share[0] // share[1] + sinks)


@dataclass(frozen=True)
class Behind:
    """What a part of a document stands behind: the `cache` of the parts before it."""

    cache: KVCache
    streamed: Streamed

    def left(self, tokens: int) -> int:
        """Tokens of the document that follow a part of `tokens`."""
        return self.streamed.tokens - self.cache.position - tokens

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

    Keys are turned by the difference of both positions; so are the queries that score them, as if
    they had come from there. The entries of a sliding layer all move as far as the part's end.
    """

    def __init__(self, model: Decoder, behind: Behind, tokens: int):
        start, rotary = behind.cache.position, behind.cache.rotary
        own = torch.arange(tokens, device=model.device)
        at = places(behind.streamed, own + start)
        self.end = int(at[-1]) + 1  # the position after the part
        self._own = model.rotations(at - (own + rotary))
        after = self.end - (rotary + tokens)
        self._after = model.rotations(torch.tensor([after], device=model.device))

    def move(
        self, layer: AnyLayer, rope: int, document: Observation, probes: Sequence[Observation]
    ) -> None:
        """Move the entries of a layer's tail, and the queries of document and probes."""
        keys, own, after = layer.tail.keys, self._own[rope], self._after[rope]
        if not isinstance(layer, LayerCache):
            turn = _often(after, layer.tail.length)
            keys.copy_(_turned(keys.transpose(0, 1), turn).transpose(0, 1))
            return
        keys.copy_(_turned(keys.transpose(0, 1), own).transpose(0, 1))
        for observed, turn in [(document, own), *((probe, after) for probe in probes)]:
            if observed.window is not None:
                queries, lse = observed.window
                turn = turn.part(-len(queries)) if turn is own else _often(turn, len(queries))
                observed.window = _turned(queries, turn), lse


def _turned(x: Tensor, rotation: Rotation) -> Tensor:
    """`x [T, heads, D]`, each turned further."""
    return ops.rope(x, rotation.cos, rotation.sin)


def _often(rotation: Rotation, times: int) -> Rotation:
    """The rotation of one position, for so many tokens."""
    return Rotation(rotation.cos.expand(times, -1), rotation.sin.expand(times, -1))
