"""A token through all layers by functions that numba compiles: the decode step of a CPU.

About ten calls per layer, none of which allocates; weights and entries stay where the tensors are.
"""

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor, nn

from kvchat.engine.cache.layer import KVCache, LayerCache
from kvchat.engine.cache.window import WindowLayer
from kvchat.engine.decode import maps
from kvchat.engine.decode.past import NONE, Past
from kvchat.engine.decode.room import Room
from kvchat.engine.model.decoder import Decoder
from kvchat.engine.model.layers import Block, RMSNorm
from kvchat.kernels.cpu.layer import add, gate, norm, place


class LayerStep:
    """One layer: its weights, and the entries of the cache that is decoded over."""

    def __init__(self, model: Decoder, number: int, room: "Room", threads: int):
        config, block = model.config, model.blocks[number]
        attention, mlp = block.self_attn, block.mlp
        self.room, self.rope = room, block.kind.rope
        inner = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.eps = np.float32(config.rms_norm_eps)
        self.scale, cap = np.float32(config.head_dim**-0.5), np.float32(config.attention_cap)
        self.past = Past(room, self.scale, cap, block.kind.window, threads)
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

    def __call__(
        self, layer: LayerCache | WindowLayer, cos: np.ndarray, sin: np.ndarray, raised: Any
    ) -> None:
        """Run `room.x` through the layer and its cache, in place."""
        room, tail, past = self.room, layer.tail, self.past
        past.follow(layer)
        norm(room.x, self.before, self.eps, room.h)
        self.qkv(room.h, room.qkv)
        given = cos, sin, self.factors, raised, past.keys, past.values, tail.place
        place(room.qkv, *self.about, *given)
        tail.accept(1)
        past.attend(layer)
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


class CompiledStep:
    """Feeds tokens one by one to a cache."""

    def __init__(self, model: Decoder):
        self.model, threads = model, torch.get_num_threads()
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        self.room = Room(model.config, threads)
        self.layers = [LayerStep(model, n, self.room, threads) for n in range(len(model.blocks))]
        self.head = maps.product([model.lm_head], self.room.rounded, threads)
        self.norm = _norm(model.model.norm)
        self.logits = torch.empty(model.config.vocab_size)
        self._logits = self.logits.numpy()

    def forget(self) -> None:
        """Let go of the cache, once an answer has ended."""
        for layer in self.layers:
            layer.past.forget()

    @torch.inference_mode()
    def __call__(self, cache: KVCache, token: int) -> Tensor:
        """Append a token to the cache; the logits `[vocab]` (f32) after it, until the next call."""
        model, room = self.model, self.room
        room.x[:] = model.embed(torch.tensor([token]))[0].float().numpy()
        rotations = []
        for each in model.rotations(torch.tensor([cache.rotary])):
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
