"""A token through all layers by functions that numba compiles: the decode step of a CPU.

About ten calls per layer, none of which allocates; weights and entries stay where the tensors are.
Several caches take a token each in one step: then a product reads its weights once for all of them,
and each token attends to its own cache.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor, nn

from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.cache.window import WindowLayer
from kvchat.engine.decode import maps
from kvchat.engine.decode.past import NONE, Past
from kvchat.engine.decode.room import Room, Rows
from kvchat.engine.model.decoder import Decoder
from kvchat.engine.model.layers import Block, RMSNorm
from kvchat.kernels.cpu.layer import add, gate, norm, place

NOTHING = torch.empty(0)


class Turned(NamedTuple):
    """Where tokens stand: cosine and sine `[B, D/2]`, and what each one's queries are raised by."""

    cos: np.ndarray
    sin: np.ndarray
    raised: np.ndarray


class LayerStep:
    """One layer: its weights, and the entries of the cache that is decoded over."""

    def __init__(self, model: Decoder, number: int, room: Room, threads: int):
        config, block = model.config, model.blocks[number]
        attention, mlp = block.self_attn, block.mlp
        self.rope = block.kind.rope
        inner = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.eps = np.float32(config.rms_norm_eps)
        self.scale, cap = np.float32(config.head_dim**-0.5), np.float32(config.attention_cap)
        about = room, self.scale, cap, block.kind.window, threads
        self.pasts = [Past(*about) for _ in room.lanes]
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
        self.down = maps.product([mlp.down_proj], room.rounded, threads)
        biases = _bias(attention.o_proj), _bias(mlp.down_proj)
        if (peers := model.peers).count > 1:
            heads = [config.num_heads * config.head_dim] * peers.count
            self.o = maps.Joined(self.o, peers, attention.cuts, heads, _or_none(biases[0]))
            self.down = maps.Joined(self.down, peers, mlp.cuts, mlp.inner, _or_none(biases[1]))
            biases = NONE, NONE
        residual = np.float32(config.residual_scale)
        self.attended = (
            biases[0],
            _norm(block.attention_output_norm),
            residual,
            _norm(block.post_attention_layernorm),
            self.eps,
        )
        self.both = maps.product([mlp.gate_proj, mlp.up_proj], room.rounded, threads)
        self.gating = _bias(mlp.gate_proj), _bias(mlp.up_proj), config.activation != "silu"
        self.finished = (
            biases[1],
            _norm(block.mlp_output_norm),
            residual,
            NONE,
            self.eps,
        )

    def __call__(
        self, layers: Sequence[LayerCache | WindowLayer], rows: Rows, turned: Turned
    ) -> None:
        """Run `rows.x`, a token of each layer's cache, through the layer, in place."""
        each = list(zip(rows.lanes, self.pasts, layers, *turned, strict=False))
        for lane in rows.lanes:
            norm(lane.x, self.before, self.eps, lane.h)
        self.qkv(rows.h, rows.qkv)
        for lane, past, layer, cos, sin, raised in each:
            past.follow(layer)
            given = cos, sin, self.factors, raised, past.keys, past.values, layer.tail.place
            place(lane.qkv, *self.about, *given)
            layer.tail.accept(1)
            past.attend(layer, lane)
            if isinstance(layer, LayerCache):
                if layer.citing is not None:  # it copies what it keeps
                    layer.citing.see(lane.seen_q, lane.seen_lse, layer, 0.0, NOTHING, NOTHING)
                for observer in filter(None, (layer.observer, layer.asking)):
                    q, lse = lane.seen_q.clone(), lane.seen_lse.clone()
                    where = torch.from_numpy(cos)[None], torch.from_numpy(sin)[None]
                    observer.see(q, lse, layer, float(self.scale), *where)
        self.o(rows.out, rows.y)
        for lane in rows.lanes:
            add(lane.x, lane.y, *self.attended, lane.h)
        self.both(rows.h, rows.both)
        for lane in rows.lanes:
            gate(lane.both, *self.gating, lane.inner)
        self.down(rows.inner, rows.y)
        for lane in rows.lanes:
            add(lane.x, lane.y, *self.finished, lane.h)


class CompiledStep:
    """Feeds tokens one by one to a cache, or to up to `rows` caches side by side."""

    def __init__(self, model: Decoder, rows: int = 1):
        self.model, self.rows, threads = model, rows, torch.get_num_threads()
        self._fed = 0  # rows of the last step
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        torch.set_num_threads(threads)  # numba's pool gives its own number to torch when it begins
        self.room = Room(model.config, threads, rows)
        self.layers = [LayerStep(model, n, self.room, threads) for n in range(len(model.blocks))]
        self.head = maps.product([model.lm_head], self.room.rounded, threads)
        if model.peers.count > 1:
            self.head = maps.Joined(self.head, model.peers, model.tokens)
        self.norm = _norm(model.model.norm)
        self.logits = torch.empty(rows, model.config.vocab_size)
        self._logits = self.logits.numpy()

    def forget(self, first: int = 0) -> None:
        """Let go of the caches of rows from `first` on, once their answers have ended."""
        for layer in self.layers:
            for past in layer.pasts[first:]:
                past.forget()

    def __call__(self, cache: KVCache, token: int) -> Tensor:
        """Append a token to the cache; the logits `[vocab]` (f32) after it, until the next call."""
        return self.together([cache], [token])[0]

    @torch.inference_mode()
    def together(self, caches: Sequence[KVCache], tokens: Sequence[int]) -> Tensor:
        """Append to each cache its token; the logits `[B, vocab]` (f32) until the next call."""
        model, rows = self.model, self.room.first(len(caches))
        if len(caches) < self._fed:
            self.forget(len(caches))
        self._fed = len(caches)
        rows.x[:] = model.embed(torch.tensor(tokens)).float().numpy()
        where, turned = torch.tensor([cache.rotary for cache in caches]), []
        for each in model.rotations(where):
            raised = np.ones(len(caches), np.float32)
            if each.raised is not None:
                raised[:] = each.raised.view(-1).numpy()
            turned.append(Turned(each.cos.numpy(), each.sin.numpy(), raised))
        walked = zip(*(cache.walked for cache in caches), strict=True)
        for step, layers in zip(self.layers, walked, strict=True):
            step(layers, rows, turned[step.rope])
        for cache in caches:
            cache.advance(1)
        for lane in rows.lanes:
            norm(lane.x, self.norm, self.layers[0].eps, lane.h)
        self.head(rows.h, self._logits[: len(caches)])
        return model.bounded(self.logits[: len(caches)])


def _norm(module: nn.Module) -> np.ndarray:
    return _wide(module.weight) if isinstance(module, RMSNorm) else NONE


def _bias(module: nn.Module) -> np.ndarray:
    bias = getattr(module, "bias", None)
    return NONE if bias is None else _wide(bias)


def _or_none(bias: np.ndarray) -> np.ndarray | None:
    return bias if bias.size else None


def _wide(vector: Tensor) -> np.ndarray:
    """Small ones in f32, so that functions are compiled for one kind of them."""
    return vector.detach().float().contiguous().numpy()


def _factors(block: Block) -> np.ndarray:
    return NONE if block.factors is None else np.array(block.factors, np.float32)
