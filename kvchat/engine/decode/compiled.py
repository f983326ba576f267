"""A token through all layers by functions that numba compiles: the decode step of a CPU.

About ten calls per layer, none of which allocates; weights and entries stay where the tensors are.
"""

from collections.abc import Sequence
from itertools import chain
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
from kvchat.engine.model.config import LayerKind, ModelConfig, Rope
from kvchat.engine.model.decoder import Decoder
from kvchat.engine.model.layers import Block, RMSNorm
from kvchat.engine.prefill.prefill import empty_cache
from kvchat.engine.weights import lowbit
from kvchat.engine.weights.checkpoint import random_weights
from kvchat.engine.weights.linear import Int4Linear, Int8Linear, Linear
from kvchat.kernels.cpu import products
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

# Values of a matrix, and of a layer's keys, that are worth waking other threads for.
WORTH = 2**22
NONE = np.empty(0, np.float32)


class Product:
    """Linear maps of one input: `y = [a; b; c] x`, by how their weights are stored."""

    def __init__(self, modules: Sequence[nn.Module], threads: int):
        self._modules = modules
        self._calls: list[tuple[Any, tuple[Any, ...], slice | None]] = []
        if all(isinstance(each, Linear) for each in modules):
            arrays = [(view(each.weight),) for each in modules]  # type: ignore[arg-type]
            one, many, joined = products.gemv, products.gemv_parallel, products.gemv_joined
        elif all(isinstance(each, Int8Linear) for each in modules):
            arrays = [(view(each.codes), view(each.scale)) for each in modules]  # type: ignore[arg-type,misc]
            one, many = products.gemv_rows, products.gemv_rows_parallel
            joined = products.gemv_rows_joined
        else:
            return
        if threads > 1 and sum(each[0].size for each in arrays) >= WORTH:
            end = 0
            for each in arrays:
                begin, end = end, end + len(each[0])
                self._calls.append((many, each, slice(begin, end)))
        elif len(arrays) == 1:
            self._calls.append((one, arrays[0], None))
        else:
            missing = 3 - len(arrays)
            lists = ([*each, *[each[0][:0]] * missing] for each in zip(*arrays, strict=True))
            self._calls.append((joined, tuple(chain.from_iterable(lists)), None))

    def __call__(self, x: np.ndarray, y: np.ndarray) -> None:
        """`x [in]` to `y [out]`, both f32, without biases."""
        for call, weights, part in self._calls:
            call(*weights, x, y if part is None else y[part])
        if self._calls:
            return
        given, end = torch.from_numpy(x)[None], 0
        wide, out = given.to(lowbit.WIDE), torch.from_numpy(y)
        for module in self._modules:
            if isinstance(module, Int4Linear):
                found = lowbit.operator(wide, module.packed, module.scales, module.group)
            else:
                found = unbiased(module, given)
            begin, end = end, end + found.shape[1]
            out[begin:end] = found[0]


def unbiased(module: nn.Module, x: Tensor) -> Tensor:
    """What a map makes of `x [1, in]` (f32) without its bias."""
    assert isinstance(module, (Linear, Int8Linear)), module
    if isinstance(module, Linear):
        return nn.functional.linear(x.to(module.weight.dtype), module.weight)
    bare = Int8Linear(module.codes, module.scale)
    y: Tensor = bare(x)
    return y


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
        maps = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.eps = np.float32(config.rms_norm_eps)
        self.scale, self.cap = np.float32(config.head_dim**-0.5), np.float32(config.attention_cap)
        self.before = _norm(block.input_layernorm)
        self.qkv = Product(maps, threads)
        self.about = (
            *(_bias(each) for each in maps),
            _norm(attention.q_norm),
            _norm(attention.k_norm),
            self.eps,
        )
        self.factors = _factors(block)
        self.o = Product([attention.o_proj], threads)
        residual = np.float32(config.residual_scale)
        self.attended = (
            _bias(attention.o_proj),
            _norm(block.attention_output_norm),
            residual,
            _norm(block.post_attention_layernorm),
            self.eps,
        )
        self.both = Product([mlp.gate_proj, mlp.up_proj], threads)
        self.gating = _bias(mlp.gate_proj), _bias(mlp.up_proj), config.activation != "silu"
        self.down = Product([mlp.down_proj], threads)
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
        many = self.threads > 1 and entries * room.dim >= WORTH
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
        # the same memory for who wants tensors
        self.seen_q = torch.from_numpy(self.queries)[None]
        self.seen_lse = torch.from_numpy(self.lse)[None]

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
        self.head = Product([model.lm_head], threads)
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
    """Have everything compiled that a model of this dtype needs: a tiny one writes a token."""
    rope = Rope(16)
    config = ModelConfig(
        family="llama", vocab_size=64, hidden_size=64, intermediate_size=64, num_heads=4,
        num_kv_heads=2, head_dim=16, rms_norm_eps=1e-5, layers=(LayerKind(),), ropes=(rope,),
        max_position=64, stretched=64, dtype="float32",
    )  # fmt: skip
    for weights in ("auto", "int8"):
        model = random_weights(config, dtype, torch.device("cpu"), weights=weights)
        with torch.inference_mode():
            cache = empty_cache(model, TorchBackend())
            CompiledStep(model)(cache, 0)
