"""A token through all layers by functions that numba compiles: the decode step of a CPU.

About ten calls per layer, none of which allocates; weights and entries stay where the tensors are.
"""

import threading
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor, nn

from kvchat.engine.attention.entries import Entries
from kvchat.engine.attention.torch_backend import TorchBackend
from kvchat.engine.cache.layer import KVCache, LayerCache
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.cache.window import WindowLayer
from kvchat.engine.decode import maps
from kvchat.engine.model.config import LayerKind, ModelConfig, Rope
from kvchat.engine.model.decoder import Decoder
from kvchat.engine.model.layers import Block, RMSNorm
from kvchat.engine.prefill.prefill import empty_cache
from kvchat.engine.weights.checkpoint import random_weights
from kvchat.kernels.cpu import four_bits, products
from kvchat.kernels.cpu.attention import (
    BLOCK,
    attend,
    attend_parallel,
    include,
    padded,
    together,
)
from kvchat.kernels.cpu.layer import add, gate, norm, place
from kvchat.kernels.cpu.numbers import view

NONE = np.empty(0, np.float32)


class Set:
    """Entries as the kernel takes them."""

    def __init__(self, entries: Entries):
        heads = len(entries.spans)
        self.k, self.v = view(entries.k), view(entries.v)
        self.start, self.length = np.empty(heads, np.int64), np.empty(heads, np.int64)
        self.bias = NONE if entries.bias is None else view(entries.bias)
        self.take(entries.spans)

    def take(self, spans: Sequence[tuple[int, int]]) -> None:
        """Other ranges of the same store."""
        for head, (first, count) in enumerate(spans):
            self.start[head], self.length[head] = first, count


class LayerStep:
    """One layer: its weights, and the entries of the cache that is decoded over."""

    def __init__(self, model: Decoder, number: int, room: "Room", threads: int):
        config, block = model.config, model.blocks[number]
        attention, mlp = block.self_attn, block.mlp
        self.room, self.threads = room, threads
        self.rope, self.window = block.kind.rope, block.kind.window
        inner = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.eps = np.float32(config.rms_norm_eps)
        self.scale, self.cap = np.float32(config.head_dim**-0.5), np.float32(config.attention_cap)
        self.before = _norm(block.input_layernorm)
        self.qkv = maps.product(inner, room.rounded, threads)
        self.about = (
            *(_bias(each) for each in inner),
            _norm(attention.q_norm),
            _norm(attention.k_norm),
            self.eps,
        )
        self.factors = _factors(block)
        self.o = maps.product([attention.o_proj], room.rounded, threads)
        residual = np.float32(config.residual_scale)
        self.attended = (
            _bias(attention.o_proj),
            _norm(block.attention_output_norm),
            residual,
            _norm(block.post_attention_layernorm),
            self.eps,
        )
        self.both = maps.product([mlp.gate_proj, mlp.up_proj], room.rounded, threads)
        self.gating = _bias(mlp.gate_proj), _bias(mlp.up_proj), config.activation != "silu"
        self.down = maps.product([mlp.down_proj], room.rounded, threads)
        self.finished = (
            _bias(mlp.down_proj),
            _norm(block.mlp_output_norm),
            residual,
            NONE,
            self.eps,
        )
        self.forget()

    def forget(self) -> None:
        """Let go of the cache that was decoded over: its memory is kept by what looks into it."""
        self._store: Tensor | None = None  # of the tail, as the arrays below see it
        self._keys = self._values = NONE
        self._live: Set | None = None
        self._frozen: dict[int, tuple[Any, list[Set] | None]] = {}

    def __call__(
        self, layer: LayerCache | WindowLayer, cos: np.ndarray, sin: np.ndarray, raised: Any
    ) -> None:
        """Run `room.x` through the layer and its cache, in place."""
        room, tail = self.room, layer.tail
        tail.grow(1)
        if tail.k is not self._store:
            self._store = tail.k
            self._keys, self._values = view(tail.k), view(tail.v)
            self._live = Set(tail.entries)
        norm(room.x, self.before, self.eps, room.h)
        self.qkv(room.h, room.qkv)
        given = cos, sin, self.factors, raised, self._keys, self._values, tail.place
        place(room.qkv, *self.about, *given)
        tail.accept(1)
        self._attend(layer)
        if isinstance(layer, LayerCache):
            for observer in layer.observers:
                q, lse = room.seen_q.clone(), room.seen_lse.clone()
                turned = torch.from_numpy(cos)[None], torch.from_numpy(sin)[None]
                observer.see(q, lse, layer, float(self.scale), *turned)
        self.o(room.out, room.y)
        add(room.x, room.y, *self.attended, room.h)
        self.both(room.h, room.both)
        gate(room.both, *self.gating)
        self.down(room.inner, room.y)
        add(room.x, room.y, *self.finished, room.h)

    def _attend(self, layer: LayerCache | WindowLayer) -> None:
        room, tail = self.room, layer.tail
        assert self._live is not None
        newest = min(tail.length, self.window or tail.length)
        self._live.take(tail.newest_spans(newest))
        sets, others = [], []
        if isinstance(layer, LayerCache):
            for segment in layer.segments:
                found = self._sets(segment)
                if found is None:
                    others.append(segment)
                else:
                    sets += found
        sets.append(self._live)
        entries = sum(int(each.length.sum()) for each in sets)
        many = self.threads > 1 and entries * room.dim >= maps.WORTH
        splits = room.splits if many else 1
        state, fresh = room.state(splits), True
        q = room.queries
        for number, each in enumerate(sets):
            last = number == len(sets) - 1 and not others
            (attend_parallel if many else attend)(
                q, each.k, each.v, each.start, each.length, each.bias, self.scale, self.cap,
                room.width, splits, fresh, last, *state, room.asked, room.logits, room.o, room.lse,
            )  # fmt: skip
            fresh = False
        for number, segment in enumerate(others):
            wide = room.seen_q.to(tail.k.dtype)
            o, lse = segment.attend(wide, float(self.scale), layer.backend)
            last = number == len(others) - 1
            include(*state, splits, last, _row(o), _row(lse), room.o, room.lse)

    def _sets(self, segment: Any) -> list[Set] | None:
        """What the kernel takes of a segment; None if it cannot."""
        known = self._frozen.get(id(segment))
        if known is None or known[0] is not segment:
            able = isinstance(segment, FlatSegment)
            known = segment, [Set(part) for part in segment.parts] if able else None
            if len(self._frozen) > 8:
                self._frozen.clear()
            self._frozen[id(segment)] = known
        return known[1]


class Room:
    """What a token needs of memory, for all layers."""

    def __init__(self, model: Decoder, splits: int):
        config = model.config
        self.dim, self.splits = config.head_dim, splits
        heads, group = config.num_kv_heads, config.num_heads // config.num_kv_heads
        width = config.num_heads * config.head_dim
        self.x, self.h, self.y = np.empty((3, config.hidden_size), np.float32)
        self.qkv = np.empty(width + 2 * heads * self.dim, np.float32)
        self.queries = self.qkv[:width].reshape(config.num_heads, self.dim)
        self.out = np.empty(width, np.float32)
        self.o = self.out.reshape(config.num_heads, self.dim)
        self.lse = np.empty(config.num_heads, np.float32)
        self.both = np.empty(2 * config.intermediate_size, np.float32)
        self.inner = self.both[: config.intermediate_size]
        self.width, wide = together(group), padded(group)
        self.logits = np.empty((heads * splits, wide, BLOCK), np.float32)
        self.asked, self._sums = np.empty((2, heads * splits, wide, self.dim), np.float32)
        self._tops, self._totals = np.empty((2, heads * splits, wide), np.float32)
        self._heads = heads
        self._rounded: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        # the same memory for who wants tensors
        self.seen_q = torch.from_numpy(self.queries)[None]
        self.seen_lse = torch.from_numpy(self.lse)[None]

    def rounded(self, inputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What 4-bit products need of an input; products of one size share it."""
        if inputs not in self._rounded:
            groups = inputs // four_bits.GROUP
            steps, totals = np.empty((2, groups), np.float32)
            self._rounded[inputs] = np.empty((inputs // 4, 64), np.int8), steps, totals
        return self._rounded[inputs]

    def state(self, splits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sums, largest logits and weights of heads in so many pieces."""
        tasks = self._heads * splits
        return self._sums[:tasks], self._tops[:tasks], self._totals[:tasks]


class CompiledStep:
    """Feeds tokens one by one to a cache."""

    def __init__(self, model: Decoder):
        self.model, threads = model, torch.get_num_threads()
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        splits = -(-threads // model.config.num_kv_heads)
        self.room = Room(model, splits)
        self.layers = [LayerStep(model, n, self.room, threads) for n in range(len(model.blocks))]
        self.head = maps.product([model.lm_head], self.room.rounded, threads)
        self.norm = _norm(model.model.norm)
        self.logits = torch.empty(model.config.vocab_size)
        self._logits = self.logits.numpy()

    def forget(self) -> None:
        """Let go of the cache, once an answer has ended."""
        for layer in self.layers:
            layer.forget()

    @torch.inference_mode()
    def __call__(self, cache: KVCache, token: int) -> Tensor:
        """Append a token to the cache; the logits `[vocab]` (f32) after it, until the next call."""
        model, room = self.model, self.room
        room.x[:] = model.embed(torch.tensor([token]))[0].float().numpy()
        rotations = []
        for each in model.rotations(torch.tensor([cache.position])):
            raised = np.float32(1 if each.raised is None else float(each.raised))
            rotations.append((each.cos[0].numpy(), each.sin[0].numpy(), raised))
        for step, layer in zip(self.layers, cache.walked, strict=True):
            step(layer, *rotations[step.rope])
        cache.advance(1)
        norm(room.x, self.norm, self.layers[0].eps, room.h)
        self.head(room.h, self._logits)
        return model.bounded(self.logits)


def _norm(module: nn.Module) -> np.ndarray:
    return _wide(module.weight) if isinstance(module, RMSNorm) else NONE


def _bias(module: nn.Module) -> np.ndarray:
    bias = getattr(module, "bias", None)
    return NONE if bias is None else _wide(bias)


def _wide(vector: Tensor) -> np.ndarray:
    """Small ones in f32, so that functions are compiled for one kind of them."""
    return vector.detach().float().contiguous().numpy()


def _factors(block: Block) -> np.ndarray:
    return NONE if block.factors is None else np.array(block.factors, np.float32)


def _row(tensor: Tensor) -> np.ndarray:
    return tensor[0].float().contiguous().numpy()


def warm(dtype: torch.dtype) -> None:
    """Have everything compiled that a model of this dtype needs: a tiny one writes a token.

    The first time that takes seconds, so it stops between functions when the program ends.
    """
    rope = Rope(32)
    config = ModelConfig(
        family="llama", vocab_size=64, hidden_size=64, intermediate_size=64, num_heads=4,
        num_kv_heads=2, head_dim=32, rms_norm_eps=1e-5, layers=(LayerKind(),), ropes=(rope,),
        max_position=64, stretched=64, dtype="float32",
    )  # fmt: skip
    running = threading.main_thread().is_alive
    for weights in ("auto", "int4"):  # tables are in 8 bits then
        if not running():
            return
        model = random_weights(config, dtype, torch.device("cpu"), weights=weights)
        with torch.inference_mode():
            cache = empty_cache(model, TorchBackend())
            CompiledStep(model)(cache, 0)
    if torch.get_num_threads() > 1:
        for one, many in (*products.PAIRS, *four_bits.PAIRS, (attend, attend_parallel)):
            for signature in one.signatures:
                if not running():
                    return
                many.compile(signature)
