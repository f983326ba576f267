"""`ModelConfig` from config.json: the only reader of Hugging Face keys. No torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvchat.engine.model import MODELS
from kvchat.engine.sizes import ITEM_BYTES
from kvchat.errors import KvchatError

LFS_MARK = b"version https://git-lfs"
ROPE_KINDS = ("default", "linear", "llama3")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are scaled. `llama3` uses all five numbers, `linear` the factor."""

    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_position: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and constants of a Llama-like decoder."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope: RopeScaling
    max_position: int
    sliding_window: int | None
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    dtype: str
    end_tokens: tuple[int, ...]

    @property
    def context_limit(self) -> int:
        """Tokens that the model can see: positions it was trained for, within its window.

        Inside its window a sliding-window checkpoint is exact; beyond it we refuse.
        """
        return min(self.max_position, self.sliding_window or self.max_position)

    @property
    def kv_values_per_token(self) -> int:
        """Key and value numbers that one token leaves in the whole cache."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

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
        biases = self.attention_bias * (queries + 2 * kv + self.hidden_size)
        biases += self.mlp_bias * (2 * self.intermediate_size + self.hidden_size)
        block = maps + biases + 2 * self.hidden_size
        tables = 1 if self.tie_word_embeddings else 2
        table = self.vocab_size * self.hidden_size
        return self.num_layers * block + tables * table + self.hidden_size

    @classmethod
    def load(cls, folder: Path) -> "ModelConfig":
        """Read `folder/config.json`. Raises KvchatError("model") naming what is not supported."""
        path = folder / "config.json"
        return cls.from_dict(read_json(path), str(path))

    @classmethod
    def from_dict(cls, raw: dict[str, Any], source: str = "config.json") -> "ModelConfig":
        """Interpret the keys of a config. Raises KvchatError("model")."""
        family = raw.get("model_type")
        if family not in MODELS:
            raise KvchatError(
                "model",
                f"{source}: model type {family!r} is not supported "
                f"(supported: {', '.join(MODELS)})",
                supported=list(MODELS),
            )
        quantized = raw.get("quantization_config")
        if quantized is not None:
            kind = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
            raise KvchatError(
                "model",
                f"{source}: quantized checkpoint ({kind}) is not supported",
                "use the original safetensors in bf16, f16 or f32",
            )
        activation = raw.get("hidden_act", "silu")
        if activation != "silu":
            raise KvchatError("model", f"{source}: activation {activation!r} is not supported")
        try:
            return cls._read(raw, source)
        except KeyError as error:
            raise KvchatError("model", f"{source} has no {error.args[0]!r}") from None
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise KvchatError(
                "model", f"{source}: a value is out of range or has the wrong type ({error})"
            ) from None

    @classmethod
    def _read(cls, raw: dict[str, Any], source: str) -> "ModelConfig":
        heads = _size(raw["num_attention_heads"])
        hidden = _size(raw["hidden_size"])
        kv_heads = _size(raw.get("num_key_value_heads") or heads)
        head_dim = _size(raw.get("head_dim") or hidden // heads)
        if heads % kv_heads:
            raise KvchatError(
                "model", f"{source}: {heads} query heads do not divide into {kv_heads} KV heads"
            )
        if head_dim % 2:
            raise KvchatError("model", f"{source}: head_dim {head_dim} is odd; RoPE needs pairs")
        dtype = str(raw.get("dtype") or raw.get("torch_dtype") or "float32")
        end = raw.get("eos_token_id")
        theta, rope = _rope(raw, source)
        # transformers leaves this default of Mistral v0.1 out of the files it writes
        window = raw.get("sliding_window", 4096 if raw["model_type"] == "mistral" else None)
        return cls(
            family=raw["model_type"],
            vocab_size=_size(raw["vocab_size"]),
            hidden_size=hidden,
            intermediate_size=_size(raw["intermediate_size"]),
            num_layers=_size(raw["num_hidden_layers"]),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope_theta=theta,
            rope=rope,
            max_position=_size(raw.get("max_position_embeddings", 2048)),
            sliding_window=_size(window) if window else None,
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            attention_bias=bool(raw.get("attention_bias", False)),
            mlp_bias=bool(raw.get("mlp_bias", False)),
            dtype=dtype if dtype in ITEM_BYTES else "float32",
            end_tokens=tuple(end) if isinstance(end, list) else () if end is None else (int(end),),
        )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a model's file. Raises KvchatError("model")."""
    try:
        data = path.read_bytes()
        if data.startswith(LFS_MARK):
            raise KvchatError(
                "model",
                f"{path} is a {len(data)}-byte Git LFS pointer",
                f"git -C {path.parent} lfs pull",
            )
        raw = json.loads(data)
    except (ValueError, RecursionError, OSError) as error:
        raise KvchatError("model", f"{path} is not valid JSON ({error})") from None
    if not isinstance(raw, dict):
        raise KvchatError("model", f"{path} does not hold a JSON object")
    return raw


def _size(value: Any) -> int:
    """A size that a tensor can have. Raises ValueError."""
    number = int(value)
    if not 0 < number < 2**31:
        raise ValueError(f"{number} is not a size")
    return number


def _rope(raw: dict[str, Any], source: str) -> tuple[float, RopeScaling]:
    """Base and scaling; transformers 5 writes both into `rope_parameters`, older files apart."""
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = float(scaling.get("rope_theta") or raw.get("rope_theta") or 10_000.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ROPE_KINDS:
        raise KvchatError(
            "model",
            f"{source}: RoPE kind {kind!r} is not supported (supported: {', '.join(ROPE_KINDS)})",
            supported=list(ROPE_KINDS),
        )
    partial = scaling.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0
    if float(partial) != 1.0:
        raise KvchatError("model", f"{source}: partial RoPE ({partial}) is not supported")
    if theta <= 0:
        raise KvchatError("model", f"{source}: rope_theta {theta:g} is not above 0")
    if kind == "default":
        return theta, RopeScaling()
    if float(scaling["factor"]) <= 0:
        raise KvchatError("model", f"{source}: RoPE factor {scaling['factor']} is not above 0")
    if kind == "linear":
        return theta, RopeScaling(kind, factor=float(scaling["factor"]))
    return theta, RopeScaling(
        kind,
        factor=float(scaling["factor"]),
        low_freq_factor=float(scaling["low_freq_factor"]),
        high_freq_factor=float(scaling["high_freq_factor"]),
        original_max_position=int(scaling["original_max_position_embeddings"]),
    )
