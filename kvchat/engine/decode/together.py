"""Tokens of several caches through all layers at once, by torch's operators: a product reads its
weights once for the rows of all of them, and each cache's rows attend to that cache alone.

With a token of each it is what `compiled.CompiledStep.together` is on a CPU; with the questions of
those who ask at the same time it is how these are fed.
"""

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.cache.window import WindowLayer
from kvchat.engine.events import Progress
from kvchat.engine.model.decoder import Decoder
from kvchat.engine.model.layers import Block, Rotation
from kvchat.engine.weights.host import rounding


@torch.inference_mode()
def together(
    model: Decoder, caches: Sequence[KVCache], ids: Sequence[Sequence[int]]
) -> Generator[Progress, None, Tensor]:
    """Append to each cache its `ids`, one or more; yields after every layer.

    The generator's value are the logits `[B, vocab]` after the last of each. If the consumer stops
    in between, the caches are as they were before.
    """
    device, ends, rows = model.device, list[int](), list[tuple[int, int]]()
    for each in ids:
        begin = ends[-1] if ends else 0
        ends.append(begin + len(each))
        rows.append((begin, ends[-1]))
    before = [cache.position for cache in caches]
    x = model.embed(torch.tensor([i for each in ids for i in each], device=device))  # [R, hidden]
    positions = [
        torch.arange(cache.rotary, cache.rotary + len(each), device=device)
        for cache, each in zip(caches, ids, strict=True)
    ]
    every = model.rotations(torch.cat(positions))
    walked, total = [cache.walked for cache in caches], ends[-1] * len(model.blocks)
    try:
        for number, (block, *layers) in enumerate(zip(model.blocks, *walked, strict=True), 1):
            with rounding():  # as it is decoded
                x = _through(block, layers, x, every[block.kind.rope], rows)
            yield Progress(number - 1, len(model.blocks), number * len(x), total, 0)
    except BaseException:
        for layers, position in zip(walked, before, strict=True):
            for layer in layers:
                layer.tail.truncate(position - layer.tail.start)
        raise
    for cache, each in zip(caches, ids, strict=True):
        cache.advance(len(each))
    return model.logits(x[[end - 1 for end in ends]])


def _through(
    block: Block,
    layers: Sequence[LayerCache | WindowLayer],
    x: Tensor,
    rotation: Rotation,
    rows: Sequence[tuple[int, int]],
) -> Tensor:
    """Run `x [R, hidden]` through a block; `rows` are those of each cache's newest tokens."""
    q, k, v = block.project(x, rotation)
    scale, attended = q.shape[-1] ** -0.5, []
    for (a, b), layer in zip(rows, layers, strict=True):
        layer.tail.append(k[:, a:b], v[:, a:b])
        o, lse = layer.attend(q[a:b], scale)
        if isinstance(layer, LayerCache):
            for observer in layer.observers:
                part = rotation.part(a, b)
                observer.see(q[a:b], lse, layer, scale, part.cos, part.sin)
        attended.append(o)
    return block.finish(x, torch.cat(attended))
