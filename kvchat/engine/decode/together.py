"""A token of each of several caches through all layers, by torch's operators: a product reads its
weights once for all of them, and each token attends to its own cache.

What `compiled.CompiledStep.together` is on a CPU.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kvchat.engine.cache.layer import KVCache
from kvchat.engine.model.decoder import Decoder


@torch.inference_mode()
def together(model: Decoder, caches: Sequence[KVCache], tokens: Sequence[int]) -> Tensor:
    """Append to each cache its token; the logits `[B, vocab]` after them."""
    x = model.embed(torch.tensor(tokens, device=model.device))  # [B, hidden]
    positions = torch.tensor([cache.rotary for cache in caches], device=model.device)
    every = model.rotations(positions)
    for block, *layers in zip(model.blocks, *(cache.walked for cache in caches), strict=True):
        q, k, v = block.project(x, every[block.kind.rope])
        attended = []
        for number, layer in enumerate(layers):
            own = slice(number, number + 1)
            layer.tail.append(k[:, own], v[:, own])
            attended.append(layer.attend(q[own], q.shape[-1] ** -0.5)[0])
        x = block.finish(x, torch.cat(attended))
    for cache in caches:
        cache.advance(1)
    return model.logits(x)
