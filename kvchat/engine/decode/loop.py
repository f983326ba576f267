"""Tokens decoded one after the other, by a recorded step where that can be."""

import logging
import os
from collections.abc import Iterator

import torch
from torch import Tensor

from kvchat.engine.cache.layer import KVCache
from kvchat.engine.decode.graph import Record, Step, Work, ahead, cuda_graph
from kvchat.engine.decode.sampler import Sampler, checked
from kvchat.engine.events import drain
from kvchat.engine.model.decoder import Decoder
from kvchat.engine.prefill.prefill import extend

LOG = logging.getLogger("kvchat.engine")
SWITCH = "KVCHAT_GRAPH"
GRAPH, EAGER = "CUDA graph", "eager"  # how tokens are decoded


class Writer:
    """Decodes over caches; `way` says how, and why so.

    `record` makes a step that is run again of one that has run; `refused` says why not.
    """

    def __init__(self, model: Decoder, record: Record = cuda_graph, refused: str = ""):
        self.model, self.record, self.refused = model, record, refused
        self.way = f"{EAGER}: {refused}" if refused else ""
        self._said = ""

    @classmethod
    def on(cls, model: Decoder, device: torch.device) -> "Writer":
        """As the device can, and as `KVCHAT_GRAPH` in the environment allows."""
        if device.type != "cuda":
            return cls(model, refused=f"CUDA graphs run on cuda, not on {device.type}")
        return cls(model, refused=f"{SWITCH}=off" if os.environ.get(SWITCH) == "off" else "")

    def refusal(self, cache: KVCache) -> str:
        """Why a step over this cache cannot be recorded, or an empty string."""
        if self.refused:
            return self.refused
        kinds = {part.kind for part in cache.segments() if part.parts is None}
        if kinds:
            return f"{', '.join(sorted(kinds))} segments choose entries for every token"
        if cache.windows:
            return "sliding layers"
        if any(layer.observers for layer in cache.layers):
            return "queries are observed, for turns will be compressed"
        if len({(layer.tail.place, layer.tail.length) for layer in cache.layers}) > 1:
            return "layers have different numbers of live entries"
        return ""

    def write(self, cache: KVCache, logits: Tensor, sampler: Sampler) -> Iterator[int]:
        """Tokens after `logits [vocab]`, without end; see `Engine.decode`."""
        token = sampler.draw(logits)
        yield token
        while not (reason := self.refusal(cache)):
            for layer in cache.layers:
                layer.tail.grow(1)
            room = min(layer.tail.room for layer in cache.layers)
            sampler.provide(room)
            step = Step(self.model, cache, token, sampler)
            for token in ahead(step, room, self._recorded):
                cache.accept(1)  # the token before; this one's entry does not count yet
                yield checked(token)
        self._say(f"{EAGER}: {reason}")
        while True:
            x = drain(extend(self.model, cache, [token], 1))
            token = sampler.draw(self.model.logits(x)[0])
            yield token

    def _recorded(self, step: Work) -> Work:
        try:
            again = self.record(step)
        except RuntimeError as error:
            self.refused = f"recording failed: {str(error).partition(chr(10))[0]}"
            self._say(f"{EAGER}: {self.refused}")
            return step
        self._say(GRAPH)
        return again

    def _say(self, way: str) -> None:
        if way != self._said:
            LOG.info("decoding: %s", way)
        self.way = self._said = way
