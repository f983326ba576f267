"""A small Llama for training: the layout and names of LlamaForCausalLM, bfloat16 arithmetic."""

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; the names are those of the Hugging Face configuration."""

    vocab_size: int
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 32
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e6
    # Pairs that turn slower than once in 512 tokens hardly turn at all: 20 of 32 dimensions match
    # content at any distance, the other 12 tell near positions apart.
    rope_factor: float = 1e4
    rope_context: int = 1024
    rope_low: float = 2.0
    rope_high: float = 2.1

    def hf_config(self) -> dict:
        """Arguments of `transformers.LlamaConfig`."""
        fields = {k: v for k, v in asdict(self).items() if not k.startswith("rope")}
        rope = {
            "rope_type": "llama3",
            "rope_theta": self.rope_theta,
            "factor": self.rope_factor,
            "low_freq_factor": self.rope_low,
            "high_freq_factor": self.rope_high,
            "original_max_position_embeddings": self.rope_context,
        }
        return fields | {
            "rope_parameters": rope,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
        }


def frequencies(s: Shape) -> Tensor:
    """Angle per position of each rotated pair [head_dim / 2], as Llama 3.1 scales them."""
    plain = s.rope_theta ** (-torch.arange(0, s.head_dim, 2, dtype=torch.float32) / s.head_dim)
    turns = s.rope_context * plain / (2 * math.pi)
    blend = ((turns - s.rope_low) / (s.rope_high - s.rope_low)).clamp(0, 1)
    return plain * blend + plain / s.rope_factor * (1 - blend)


def rope(position: Tensor, frequency: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [rows, 1, tokens, head_dim] of the rotary angles of the positions."""
    angle = position.float()[:, None, :, None] * frequency
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to x [rows, heads, tokens, dim]."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


class Norm(nn.Module):
    """RMSNorm with float32 statistics."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return (x * scale * self.weight).to(torch.bfloat16)


class Matrix(nn.Module):
    """A bias-free linear map; float32 weights, bfloat16 product."""

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * gain * inputs**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(torch.bfloat16))


class Attention(nn.Module):
    """Causal grouped-query attention; an additive mask replaces the causal one if given."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        gain = (2 * s.num_hidden_layers) ** -0.5
        self.q_proj = Matrix(s.hidden_size, s.num_attention_heads * s.head_dim)
        self.k_proj = Matrix(s.hidden_size, s.num_key_value_heads * s.head_dim)
        self.v_proj = Matrix(s.hidden_size, s.num_key_value_heads * s.head_dim)
        self.o_proj = Matrix(s.num_attention_heads * s.head_dim, s.hidden_size, gain)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        rows, tokens, _ = x.shape
        s = self.s
        q = self.q_proj(x).view(rows, tokens, -1, s.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(rows, tokens, -1, s.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(rows, tokens, -1, s.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin).to(x.dtype), rotate(k, cos, sin).to(x.dtype)
        group = s.num_attention_heads // s.num_key_value_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        if tokens <= 512:  # the fused kernel is slow on short rows
            out = ((q * s.head_dim**-0.5) @ k.mT + mask).softmax(-1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(out.transpose(1, 2).reshape(rows, tokens, -1))


class MLP(nn.Module):
    """Gated SiLU feed-forward."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        gain = (2 * s.num_hidden_layers) ** -0.5
        self.gate_proj = Matrix(s.hidden_size, s.intermediate_size)
        self.up_proj = Matrix(s.hidden_size, s.intermediate_size)
        self.down_proj = Matrix(s.intermediate_size, s.hidden_size, gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Pre-norm attention and feed-forward with residuals."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.input_layernorm = Norm(s.hidden_size, s.rms_norm_eps)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = Norm(s.hidden_size, s.rms_norm_eps)
        self.mlp = MLP(s)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Embedding, layers and final norm; the state dict plus `model.` is the checkpoint."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.embed_tokens = nn.Embedding(s.vocab_size, s.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=s.hidden_size**-0.5)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.num_hidden_layers))
        self.norm = Norm(s.hidden_size, s.rms_norm_eps)

    def forward(self, ids: Tensor, position: Tensor, log_weight: Tensor | None = None) -> Tensor:
        """Final hidden states [rows, tokens, hidden] of ids and positions [rows, tokens].

        A key with log_weight w counts in every softmax like exp(w) equal keys.
        """
        cos, sin = rope(position, frequencies(self.s))
        tokens, mask = ids.shape[1], None
        if log_weight is not None or tokens <= 512:
            future = torch.full((tokens, tokens), -torch.inf).triu(1)
            mask = future if log_weight is None else log_weight[:, None, None, :] + future
            mask = mask.to(torch.bfloat16)
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary scores of hidden states; the output matrix is the embedding."""
        return F.linear(hidden, self.embed_tokens.weight.to(torch.bfloat16)).float()
