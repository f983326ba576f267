"""The parts of a Llama-like decoder block. A block projects and finishes; whoever runs it stores
the keys and attends in between."""

import math

import torch
from torch import Tensor, nn

from kvchat.engine import ops
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.weights.linear import Linear

Rotation = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dim."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype of `x`."""
        return ops.rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """The four projections of grouped-query attention."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim = config.head_dim
        queries = config.num_heads * config.head_dim
        kv = config.num_kv_heads * config.head_dim
        bias = config.attention_bias
        self.q_proj = Linear(config.hidden_size, queries, bias=bias)
        self.k_proj = Linear(config.hidden_size, kv, bias=bias)
        self.v_proj = Linear(config.hidden_size, kv, bias=bias)
        self.o_proj = Linear(queries, config.hidden_size, bias=bias)


class MLP(nn.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(hidden, inner, bias=bias)
        self.up_proj = Linear(hidden, inner, bias=bias)
        self.down_proj = Linear(inner, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, hidden]` to `[T, hidden]`."""
        y: Tensor = self.down_proj(ops.swiglu(self.gate_proj(x), self.up_proj(x)))
        return y


class Block(nn.Module):
    """One decoder layer in two halves around attention."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `[T, H*G, D]`, keys and values `[H, T, D]` of `x [T, hidden]`, rotated."""
        attention, tokens = self.self_attn, x.shape[0]
        normed = self.input_layernorm(x)
        split = (tokens, -1, attention.head_dim)
        q, k, v = (
            projection(normed).view(split)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        turned = ops.rope(torch.cat((q, k), dim=1), *rotation)  # in one go
        q, k = turned.split((q.shape[1], k.shape[1]), dim=1)
        return q, k.transpose(0, 1), v.transpose(0, 1)

    @property
    def output(self) -> Tensor:
        """The output projection by query head, `[H*G, D, hidden]`; a view of plain weights."""
        norm = self.input_layernorm.weight
        weight: Tensor = self.self_attn.o_proj.dense(norm.dtype)  # [hidden, H*G*D]
        return weight.t().view(-1, self.self_attn.head_dim, weight.shape[0])

    def finish(self, x: Tensor, o: Tensor) -> Tensor:
        """The layer's output `[T, hidden]` from its input `x` and the attended `o [T, H*G, D]`."""
        delta = self.self_attn.o_proj(o.flatten(1).to(x.dtype))
        norm = self.post_attention_layernorm
        x, normed = ops.add_rms_norm(x, delta, norm.weight, norm.eps)
        y: Tensor = x + self.mlp(normed)
        return y


def frequencies(config: ModelConfig) -> Tensor:
    """Angle per position of each rotated pair, `[D/2]` fp32: `theta^(-2i/D)`, scaled.

    `linear` divides positions by the factor (arXiv 2306.15595). `llama3` divides only wavelengths
    longer than the original context / low_freq_factor, leaves those shorter than
    original / high_freq_factor, and blends between (Llama 3.1 model card).
    """
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    plain = 1.0 / config.rope_theta**exponent
    rope = config.rope
    if rope.kind == "default":
        return plain
    if rope.kind == "linear":
        return plain / rope.factor
    assert rope.kind == "llama3", rope.kind
    turns = rope.original_max_position * plain / (2 * math.pi)  # full turns in the original context
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return plain / rope.factor * (1 - blend) + plain * blend
