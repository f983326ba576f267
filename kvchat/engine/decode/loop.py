"""Tokens decoded one after the other, by a recorded step where that can be."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.lookup import LookupSegment
from kvchat.engine.decode.graph import Record, Step, Work, ahead, cuda_graph
from kvchat.engine.decode.sampler import Sampler, checked
from kvchat.engine.decode.together import together
from kvchat.engine.events import drain
from kvchat.engine.model.decoder import Decoder
from kvchat.engine.prefill.walk import extend

LOG = logging.getLogger("kvchat.engine")
SWITCH = "KVCHAT_GRAPH"
ROWS = 4  # the room for askers grows by as many
GRAPH, EAGER = "CUDA graph", "eager"  # how tokens are decoded
COMPILED = "compiled functions (numba)"
Feed = Callable[[KVCache, int], Tensor]
OBSERVED = 256  # queries of every layer that are kept until they are shown to who observes them


class Writer:
    """Decodes over caches; `way` says how, and why so.

    `record` makes a step that is run again of one that has run; `refused` says why not.
    """

    def __init__(
        self,
        model: Decoder,
        record: Record = cuda_graph,
        refused: str = "",
        compiled: bool = False,
    ):
        self.model, self.record, self.refused = model, record, refused
        self.compiled = compiled
        self.way = COMPILED if compiled else f"{EAGER}: {refused}" if refused else ""
        self._step: Any = None  # made for the first token
        self._said = ""

    @classmethod
    def on(cls, model: Decoder, device: torch.device, kernels: str = "torch") -> "Writer":
        """As the device can with these kernels, and as `KVCHAT_GRAPH` in the environment allows."""
        if model.peers.count > 1 and model.config.qk_norm == "whole":
            kernels = "torch"  # a norm over the heads of all ranks is no compiled function
        if device.type != "cuda":
            why = f"CUDA graphs run on cuda, not on {device.type}"
            return cls(model, refused=why, compiled=kernels == "numba")
        return cls(model, refused=f"{SWITCH}=off" if os.environ.get(SWITCH) == "off" else "")

    def refusal(self, cache: KVCache) -> str:
        """Why a step over this cache cannot be recorded, or an empty string."""
        if self.refused:
            return self.refused
        asks = {
            part.kind
            for part in cache.segments()
            if part.parts is None and not (isinstance(part, LookupSegment) and part.by_itself)
        }
        if asks:
            return f"{', '.join(sorted(asks))} segments choose entries with the host's help"
        return ""

    def write(
        self, cache: KVCache, logits: Tensor, sampler: Sampler, feed: Feed | None = None
    ) -> Iterator[int]:
        """Tokens after `logits [vocab]`, without end; see `Engine.decode`. Where others compute a
        part, `feed` does what `after` does, with them."""
        sampler.waits = self.compiled
        token = sampler.draw(logits)
        yield token
        given = "the form of the answer is given" if sampler.constraint is not None else ""
        given = f"{self.model.peers.count} devices" if feed else given
        while not (reason := given or self.refusal(cache)):
            for layer in cache.walked:
                layer.tail.grow(1)
            room = min(layer.tail.room for layer in cache.walked)
            if (steady := cache.steady) is not None:
                room = min(room, steady)  # then entries move, and the step is recorded anew
            if any(layer.observers for layer in cache.layers):
                room = min(room, OBSERVED)
            sampler.provide(room)
            step, counted = Step(self.model, cache, token, sampler, room), 0
            try:
                for token in ahead(step, room, self._recorded):
                    cache.accept(1)  # the token before; this one's entry does not count yet
                    counted += 1
                    yield checked(token)
            finally:
                step.show(counted)
        self._say(COMPILED if self.compiled else f"{EAGER}: {reason}")
        try:
            while not sampler.is_complete:
                token = sampler.draw((feed or self.after)(cache, token))
                yield token
        finally:
            self.forget()

    def together(self, caches: Sequence[KVCache], tokens: Sequence[int]) -> Tensor:
        """Append to each cache its token; the logits `[B, vocab]` after them, until the next call.

        The entries of caches that are left out from now on are let go of.
        """
        if not self.compiled:
            return drain(together(self.model, caches, [[token] for token in tokens]))
        logits: Tensor = self._compiled(len(caches)).together(caches, tokens)
        return logits

    def forget(self) -> None:
        """Let go of the caches that were decoded over."""
        if self._step is not None:
            self._step.forget()

    def _compiled(self, rows: int) -> Any:
        """The compiled step, with room for so many caches."""
        if self._step is None or self._step.rows < rows:
            # takes numba in, which a card does not need
            from kvchat.engine.decode.compiled import CompiledStep

            self._step = CompiledStep(self.model, -(-rows // ROWS) * ROWS if rows > 1 else 1)
        return self._step

    def after(self, cache: KVCache, token: int) -> Tensor:
        """Append a token to the cache; the logits `[vocab]` after it."""
        if not self.compiled:
            x = drain(extend(self.model, cache, [token], 1))
            return self.model.logits(x)[0]
        logits: Tensor = self._compiled(1)(cache, token)
        return logits

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


@cache  # once in a process is enough
def compile_beside(dtype: torch.dtype, kind: str = "") -> threading.Thread:
    """Have the functions of a compiled step ready when they are wanted, in a thread of its own.

    Those of every model of a dtype, or those that segments of a `kind` need beside.
    The first time on a machine they are compiled, which takes seconds; later they are read.
    """

    def work() -> None:
        from kvchat.engine.decode.warm import warm

        warm(dtype, kind)

    # no daemon: LLVM ends the process when its thread is cut off
    thread = threading.Thread(target=work, name="kvchat-compile")
    thread.start()
    return thread
