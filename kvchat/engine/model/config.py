"""`ModelConfig`: shapes and constants of a decoder, whatever its checkpoint calls them. No torch.

How families and layers differ is data here; one decoder reads it.
"""

from dataclasses import dataclass, replace
from functools import cached_property

from kvchat.errors import KvchatError


@dataclass(frozen=True)
class Rope:
    """Rotary positions of one kind of layer (arXiv 2104.09864).

    The first `dim` values of a head are rotated, in pairs, by `theta^(-2i/dim)` per position; 0:
    none (NoPE). `kind` is how these frequencies are scaled, by `factor` and the numbers beside it;
    `divisors` divide them pair by pair. `original` are the positions that were trained before
    scaling. `divisors_by_length` are those of LongRoPE (2402.13753) up to `original` positions and
    beyond; `base` is theta before `dynamic` scaling. `attention` multiplies rotated queries and
    keys (YaRN); `beta` raises queries of positions beyond `original` by
    `1 + beta * ln(1 + floor(position / original))`.
    """

    dim: int
    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    original: int = 0
    low: float = 1.0
    high: float = 1.0
    truncate: bool = True
    divisors: tuple[float, ...] = ()
    divisors_by_length: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    base: float = 0.0
    attention: float = 1.0
    beta: float = 0.0


@dataclass(frozen=True)
class LayerKind:
    """What a layer attends to: the newest `window` tokens (0: all), with which of the `ropes`."""

    window: int = 0
    rope: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and constants of a decoder.

    `max_position` tokens are the context window; `stretched` are the most that its scaled
    positions can be asked for. Biases of query, key and value, of the output, and of the MLP.
    `qk_norm`: queries and keys are normed by `head`, or as a `whole`, or not. `norms`: before
    attention and MLP (`pre`), behind them (`post`), or `both`. `norm_plus_one`: checkpoints hold
    the norms' weights minus one. Logits of attention are scaled by `query_scale * D^-0.5` and
    capped at `attention_cap` by tanh (0: not), those of tokens are divided by `logit_divisor` and
    capped at `logit_cap`. `interleaved`: checkpoints hold rotated pairs side by side.
    `wide_norms`: norms' weights stay in fp32. `blocks` are the quantized matrices of a GGUF file:
    format, shape `[out, in]`, whether it is a table of tokens, and how many.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    layers: tuple[LayerKind, ...]
    ropes: tuple[Rope, ...]
    max_position: int
    stretched: int
    dtype: str
    end_tokens: tuple[int, ...] = ()
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: str = ""
    norms: str = "pre"
    norm_plus_one: bool = False
    activation: str = "silu"
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    query_scale: float = 1.0
    attention_cap: float = 0.0
    logit_divisor: float = 1.0
    logit_cap: float = 0.0
    interleaved: bool = False
    wide_norms: bool = False
    blocks: tuple[tuple[str, tuple[int, int], bool, int], ...] = ()

    @property
    def num_layers(self) -> int:
        """All layers."""
        return len(self.layers)

    @cached_property
    def full_layers(self) -> tuple[int, ...]:
        """Numbers of the layers that attend to all tokens: methods compress these."""
        return tuple(n for n, kind in enumerate(self.layers) if not kind.window)

    @property
    def full_heads(self) -> int:
        """KV heads of all layers that attend to all tokens."""
        return self.num_kv_heads * len(self.full_layers)

    @property
    def context_limit(self) -> int:
        """Tokens of the context window."""
        return self.max_position

    @property
    def layer_values_per_token(self) -> int:
        """Key and value numbers that one token leaves in a layer."""
        return 2 * self.num_kv_heads * self.head_dim

    @property
    def kv_values_per_token(self) -> int:
        """Key and value numbers that one token leaves in the layers that attend to all tokens."""
        return len(self.full_layers) * self.layer_values_per_token

    def kv_values(self, tokens: int) -> int:
        """Key and value numbers of `tokens` tokens, uncompressed: sliding layers hold a window."""
        held = sum(min(tokens, kind.window or tokens) for kind in self.layers)
        return held * self.layer_values_per_token

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Shapes `[out, in]` of one layer's linear maps."""
        hidden, inner = self.hidden_size, self.intermediate_size
        kv = self.num_kv_heads * self.head_dim
        queries = self.num_heads * self.head_dim
        return {
            "q_proj": (queries, hidden),
            "k_proj": (kv, hidden),
            "v_proj": (kv, hidden),
            "o_proj": (hidden, queries),
            "gate_proj": (inner, hidden),
            "up_proj": (inner, hidden),
            "down_proj": (hidden, inner),
        }

    @property
    def parameters(self) -> int:
        """Number of weights, tied embeddings counted once."""
        kv = self.num_kv_heads * self.head_dim
        queries = self.num_heads * self.head_dim
        maps = sum(outputs * inputs for outputs, inputs in self.matrices.values())
        vectors = self.qkv_bias * (queries + 2 * kv) + self.output_bias * self.hidden_size
        vectors += self.mlp_bias * (2 * self.intermediate_size + self.hidden_size)
        vectors += {"": 0, "head": 2 * self.head_dim, "whole": queries + kv}[self.qk_norm]
        vectors += (4 if self.norms == "both" else 2) * self.hidden_size
        tables = 1 if self.tie_word_embeddings else 2
        table = self.vocab_size * self.hidden_size
        return self.num_layers * (maps + vectors) + tables * table + self.hidden_size

    @cached_property
    def head_order(self) -> tuple[int, ...] | None:
        """Which value of a checkpoint's head stands at each place of ours; None: they are alike.

        Ours rotates place i with i + D/2. A checkpoint may have pairs side by side, or rotate a
        part of the head only: then the rest is shared out over both halves, and turns by nothing.
        """
        dim = max(rope.dim for rope in self.ropes)
        if not dim or (dim == self.head_dim and not self.interleaved):
            return None
        rest, half = range(dim, self.head_dim), (self.head_dim - dim) // 2
        first, second = (
            (range(0, dim, 2), range(1, dim, 2))
            if self.interleaved
            else (range(dim // 2), range(dim // 2, dim))
        )
        return (*first, *rest[:half], *second, *rest[half:])

    def window(self, asked: int | None) -> int:
        """The context window, or the `asked` one: smaller, or as far as scaled positions reach.

        Raises KvchatError("usage").
        """
        if asked is not None and not 1 <= asked <= self.stretched:
            raise KvchatError(
                "usage",
                f"--ctx-size {asked:,} is outside 1–{self.stretched:,}, the model's window",
                f"--ctx-size {self.stretched}",
            )
        return self.context_limit if asked is None else asked

    def within(self, limit: int) -> "ModelConfig":
        """The same model for contexts of up to `limit` tokens, where positions depend on that.

        LongRoPE has other divisors beyond the original window; `dynamic` scaling raises the base
        with the length.
        """
        longer = max(limit, self.max_position)
        return replace(
            self, max_position=longer, ropes=tuple(_within(rope, limit) for rope in self.ropes)
        )


def _within(rope: Rope, limit: int) -> Rope:
    if rope.divisors_by_length:
        return replace(rope, divisors=rope.divisors_by_length[limit > rope.original])
    if rope.kind == "dynamic":
        stretch = rope.factor * max(limit, rope.original) / rope.original - (rope.factor - 1)
        return replace(rope, theta=rope.base * stretch ** (rope.dim / (rope.dim - 2)))
    return rope
