"""Compiling a step's functions before they are wanted: a tiny model decodes a token."""

import threading
from collections.abc import Callable
from typing import Any

import torch

from kvchat.engine.attention.torch_backend import TorchBackend
from kvchat.engine.cache.clusters import ClusterSegment, Level
from kvchat.engine.cache.keys import KeySegment
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.lookup import Reads
from kvchat.engine.cache.pq import PQSegment
from kvchat.engine.cache.quantized import QuantizedSegment
from kvchat.engine.cache.segment import FlatSegment, Segment
from kvchat.engine.decode.compiled import CompiledStep
from kvchat.engine.decode.maps import INTEGERS
from kvchat.engine.model.config import LayerKind, ModelConfig, Rope
from kvchat.engine.prefill.walk import empty_cache
from kvchat.engine.weights.checkpoint import random_weights
from kvchat.kernels.cpu import attention, choice, packed, products

HEADS, DIM, ENTRIES = 2, 32, 32
Pairs = tuple[tuple[Any, Any], ...]  # functions for one thread, and for several


def _packed(keys: torch.Tensor) -> Segment:
    position = torch.arange(HEADS * ENTRIES)
    store = keys.flatten(0, 1)
    flat = FlatSegment.of(store, store, [ENTRIES] * HEADS, position, (0, ENTRIES))
    return QuantizedSegment.of(flat, 8)


def _retrieved(keys: torch.Tensor) -> Segment:
    codes = torch.zeros(HEADS, ENTRIES, 2, dtype=torch.uint8)
    centroids = torch.zeros(HEADS, 2, 4, DIM // 2)
    return PQSegment(torch.cat((keys, keys), dim=-1), centroids, codes, Reads(0, 0, 1, 1), 0)


def _clustered(keys: torch.Tensor) -> Segment:
    codes = torch.zeros(HEADS, ENTRIES, 1, dtype=torch.int32)
    centroids, bound = torch.zeros(HEADS, 1, 4, DIM), torch.zeros(HEADS)
    level = Level(centroids[:, :, :1].clone(), codes[:, :4, 0].clone(), bound)
    pool, reads = torch.cat((keys, keys), dim=-1), Reads(0, 0, 1, 1)
    return ClusterSegment(pool, centroids, codes, reads, 0, bound, level)


def _keyed(keys: torch.Tensor) -> Segment:
    return KeySegment(keys, keys, Reads(0, 0, 1, 1), 0)


CHOICE: Pairs = ((choice.choose, choice.choose_parallel),)
KINDS: dict[str, tuple[Callable[[torch.Tensor], Segment], Pairs]] = {
    "mixed": (_packed, ((packed.attend_packed, packed.attend_packed_parallel),)),
    "quantized": (_packed, ((packed.attend_packed, packed.attend_packed_parallel),)),
    "pq": (_retrieved, CHOICE),
    "clusters": (_clustered, CHOICE),
    "keys": (_keyed, CHOICE),
}
"""By the kind of segments: one of them, and functions that only they need."""


def warm(dtype: torch.dtype, kind: str = "") -> None:
    """Have everything compiled that a model of this dtype needs, or what segments of a kind need.

    The first time that takes seconds, so it stops between functions when the program ends.
    """
    config = ModelConfig(
        family="llama", vocab_size=64, hidden_size=64, intermediate_size=64, num_heads=2 * HEADS,
        num_kv_heads=HEADS, head_dim=DIM, rms_norm_eps=1e-5, layers=(LayerKind(),),
        ropes=(Rope(DIM),), max_position=64, stretched=64, dtype="float32",
    )  # fmt: skip
    running = threading.main_thread().is_alive
    # tables are in 8 bits with the latter
    for weights in ("auto",) if kind else ("auto", "int4"):
        if not running():
            return
        model = random_weights(config, dtype, torch.device("cpu"), weights=weights)
        with torch.inference_mode():
            CompiledStep(model)(_cache(model, dtype, kind), 0)
    if torch.get_num_threads() > 1:
        pairs = (*products.PAIRS, *INTEGERS.PAIRS, (attention.attend, attention.attend_parallel))
        for one, many in KINDS[kind][1] if kind else pairs:
            for signature in one.signatures:
                if not running():
                    return
                many.compile(signature)


def _cache(model: Any, dtype: torch.dtype, kind: str) -> KVCache:
    cache = empty_cache(model, TorchBackend())
    if kind:
        segment = KINDS[kind][0](torch.ones(HEADS, ENTRIES, DIM, dtype=dtype))
        none = torch.empty(HEADS, 0, DIM, dtype=dtype)
        cache.layers[0].adopt(segment, none, none)
        cache.position = ENTRIES
    return cache
