"""Tokens walk through the layers of a model, behind a cache that has them afterwards."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from kvchat.engine.attention.entries import Backend
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.cache.window import WindowLayer
from kvchat.engine.events import Progress, Smaller
from kvchat.engine.model.decoder import Decoder
from kvchat.engine.model.layers import Block, Rotation
from kvchat.engine.prefill.replay import Replay, Retelling
from kvchat.errors import is_out_of_memory

AnyLayer = LayerCache | WindowLayer
Around = Callable[[int, Block, AnyLayer], AbstractContextManager[None]]


def rotations_at(model: Decoder, start: int, count: int) -> list[Rotation]:
    """Of the `count` positions from `start` on, for each of the config's ropes."""
    return model.rotations(torch.arange(start, start + count, device=model.device))


def empty_cache(model: Decoder, backend: Backend, position: int = 0) -> KVCache:
    """A cache of the model that has no entries, for tokens from a position on."""
    config = model.config
    windows = {n: kind.window for n, kind in enumerate(config.layers) if kind.window}
    cache = KVCache.empty(
        len(config.full_layers),
        config.num_kv_heads,
        config.head_dim,
        model.dtype,
        model.device,
        backend,
        windows,
    )
    cache.thaw(position)
    return cache


def step(block: Block, layer: AnyLayer, x: Tensor, rotation: Rotation) -> Tensor:
    """Run hidden states `x [T, hidden]` of the newest tokens through one block and its cache."""
    q, k, v = block.project(x, rotation)
    scale = q.shape[-1] ** -0.5
    layer.tail.append(k, v)
    o, lse = layer.attend(q, scale)
    if isinstance(layer, LayerCache):
        for observer in layer.observers:
            observer.see(q, lse, layer, scale, rotation.cos, rotation.sin)
    return block.finish(x, o)


@dataclass
class Pace:
    """Tokens that walk a layer at once; halved one time if memory does not suffice. It is `fixed`
    where several ranks walk in step: memory of one of them does not tell of the others."""

    chunk: int
    fixed: bool = False
    halved: bool = False

    def slow(self, error: Exception) -> Smaller:
        """Halve the chunk; raises `error` if it is something else or if that was done before."""
        if self.fixed or self.halved or self.chunk < 2 or not is_out_of_memory(error):
            raise error
        self.chunk, self.halved = self.chunk // 2, True
        return Smaller(self.chunk)


def walk(
    block: Block,
    layer: AnyLayer,
    x: Tensor,
    rotation: Callable[[int, int], Rotation],
    pace: Pace,
) -> Generator[int | Smaller, None, None]:
    """Run `x [T, hidden]` of the newest tokens through one block, chunk by chunk, in place.

    `rotation(a, b)` is that of entries `a` to `b`. Yields the tokens of each chunk that is done.
    """
    a = 0
    while a < len(x):
        b = min(a + pace.chunk, len(x))
        if b == len(x) - 1 and pace.chunk > 1 and layer.sliding is not None:
            b = len(x)  # a lone last token would read what a written one reads
        entries = layer.tail.length
        observed = [vars(observer).copy() for observer in layer.observers]
        try:
            x[a:b] = step(block, layer, x[a:b], rotation(a, b))
        except Exception as error:
            smaller = pace.slow(error)
        else:
            observed.clear()  # or it would stay alive beside its successor
            yield b - a
            a = b
            continue
        # outside of the handler, so that the failed chunk's tensors are free
        layer.tail.truncate(entries)
        for observer, before in zip(layer.observers, observed, strict=True):
            vars(observer).update(before)
        block.let_go()
        if x.is_cuda:
            torch.cuda.empty_cache()
        yield smaller


def retell(
    retelling: Retelling, block: Block, x: Tensor, rotation: Rotation, replay: Replay, pace: Pace
) -> Generator[Smaller, None, None]:
    """Run the hidden states `x` of a replay through one block, in place: at once, or slower."""
    while True:
        step = pace.chunk if pace.halved else len(x)
        try:
            x[:] = retelling.tell(block, x, rotation, replay, step)
            return
        except Exception as error:
            smaller = pace.slow(error)
        block.let_go()
        if x.is_cuda:  # outside of the handler, as above
            torch.cuda.empty_cache()
        yield smaller


def extend(
    model: Decoder,
    cache: KVCache,
    ids: Sequence[int],
    chunk: int,
    around: Around = lambda *_: nullcontext(),
) -> Generator[Progress | Smaller, None, Tensor]:
    """Append `ids` to the cache's tail, layer by layer, each inside of its `around`.

    The generator's value is their final hidden states `[T, hidden]`. If the consumer stops in
    between, the cache is as it was before.
    """
    before, total = cache.position, len(ids) * model.config.num_layers
    x = model.embed(torch.tensor(ids, device=model.device))  # [T, hidden]
    every, layers = rotations_at(model, cache.rotary, len(ids)), cache.walked
    pace, done = Pace(chunk, fixed=model.peers.count > 1), 0
    try:
        for number, (block, layer) in enumerate(zip(model.blocks, layers, strict=True)):
            with around(number, block, layer):
                for item in walk(block, layer, x, every[block.kind.rope].part, pace):
                    if isinstance(item, Smaller):
                        yield item
                        continue
                    done += item
                    yield Progress(number, len(layers), done, total, 0)
    except BaseException:
        for layer in layers:
            layer.tail.truncate(before - layer.tail.start)
        raise
    cache.advance(len(ids))
    return x
