"""`ModelConfig` from config.json: the only reader of Hugging Face keys. No torch."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from kvchat.engine.model import MODELS, NESTED
from kvchat.engine.model.config import LayerKind, ModelConfig, Rope
from kvchat.engine.model.families import Family, Fields, Raw
from kvchat.engine.sizes import ITEM_BYTES
from kvchat.errors import KvchatError
from kvchat.files import is_regular

LFS_MARK = b"version https://git-lfs"
ROPE_KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
MOST_LAYERS = 1000  # more are a damaged file, and would take all memory
FULL, SLIDING = "full_attention", "sliding_attention"


def load(folder: Path) -> ModelConfig:
    """Read `folder/config.json`. Raises KvchatError("model") naming what is not supported."""
    path = folder / "config.json"
    return interpret(read_json(path), str(path))


def family_of(name: str) -> Family:
    """The family of that `model_type`."""
    module, entry = MODELS[name].split(":")
    family: Family = getattr(import_module(module), entry)
    return family


def interpret(raw: dict[str, Any], source: str = "config.json") -> ModelConfig:
    """The meaning of a config's keys. Raises KvchatError("model")."""
    name = raw.get("model_type")
    if not isinstance(name, str | None):
        raise KvchatError("model", f"{source}: model_type is {name!r:.60}, no name")
    if name in NESTED:
        inner = raw.get("text_config")
        if not isinstance(inner, dict):
            raise KvchatError("model", f"{source} has no text_config")
        default = "gemma3_text" if name == "gemma3" else "mistral"
        around = {key: raw[key] for key in ("dtype", "torch_dtype", "eos_token_id") if key in raw}
        return interpret(around | {"model_type": default} | inner, source)
    if name not in MODELS:
        raise KvchatError(
            "model",
            f"{source}: model type {name!r} is not supported "
            f"(supported: {', '.join([*MODELS, *NESTED])})",
            "kvchat models  (lists what can be used here)",
            supported=[*MODELS, *NESTED],
        )
    quantized = raw.get("quantization_config")
    if quantized is not None:
        kind = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise KvchatError(
            "model",
            f"{source}: quantized checkpoint ({kind}) is not supported",
            "use the original safetensors in bf16, f16 or f32, or a GGUF file of the model",
        )
    try:
        config = _read(dict(raw), source)
        _require_finite(config)
        return config
    except KeyError as error:
        raise KvchatError("model", f"{source} has no {error.args[0]!r}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise KvchatError(
            "model", f"{source}: a value is out of range or has the wrong type ({error})"
        ) from None


def _read(given: dict[str, Any], source: str) -> ModelConfig:
    name = given["model_type"]
    if (count := _size(given.get("num_hidden_layers") or 1)) > MOST_LAYERS:
        raise ValueError(f"{count:,} layers")
    family = family_of(name)
    if scaling := given.get("rope_scaling"):  # which a family's default must not hide
        given.setdefault("rope_parameters", scaling)
    raw = {**family.defaults, **given}
    own: Fields = family.fields(raw)
    raw |= {
        key: own.pop(key)
        for key in ("layer_types", "sliding_window", "rope_parameters")
        if key in own
    }
    activation = raw.get("hidden_activation") or raw.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise KvchatError("model", f"{source}: activation {activation!r} is not supported")
    heads, hidden = _size(raw["num_attention_heads"]), _size(raw["hidden_size"])
    kv_heads = _size(raw.get("num_key_value_heads") or heads)
    head_dim = _size(raw.get("head_dim") or hidden // heads)
    if heads % kv_heads:
        raise KvchatError(
            "model", f"{source}: {heads} query heads do not divide into {kv_heads} KV heads"
        )
    if head_dim % 2:
        raise KvchatError("model", f"{source}: head_dim {head_dim} is odd; RoPE needs pairs")
    positions = _size(raw.get("max_position_embeddings", 2048))
    turned = own.pop("turned", None)
    ropes = _ropes(raw, own.pop("local_rope", None), head_dim, positions, source)
    layers, ropes = _layers(raw, ropes, turned, source)
    reach, stretched = _reach(ropes, positions, raw)
    if all(kind.window for kind in layers):  # nothing to compress, nothing seen beyond
        window = _size(raw["sliding_window"])
        reach, stretched = min(reach, window), min(stretched, window)
        layers = tuple(LayerKind(rope=kind.rope) for kind in layers)
    dtype = str(raw.get("dtype") or raw.get("torch_dtype") or "float32")
    config = ModelConfig(
        **{
            "family": name,
            "vocab_size": _size(raw["vocab_size"]),
            "hidden_size": hidden,
            "intermediate_size": _size(raw["intermediate_size"]),
            "num_heads": heads,
            "num_kv_heads": kv_heads,
            "head_dim": head_dim,
            "rms_norm_eps": float(raw.get("rms_norm_eps", 1e-6)),
            "layers": layers,
            "ropes": ropes,
            "max_position": reach,
            "stretched": stretched,
            "dtype": dtype if dtype in ITEM_BYTES else "float32",
            "end_tokens": token_ids(raw.get("eos_token_id")),
            "tie_word_embeddings": bool(raw.get("tie_word_embeddings", False)),
            "activation": ACTIVATIONS[activation],
        }
        | own
    )
    return config.within(config.max_position)


def _layers(
    raw: Raw, ropes: tuple[Rope, ...], turned: list[bool] | None, source: str
) -> tuple[tuple[LayerKind, ...], tuple[Rope, ...]]:
    """The kind of every layer, and the ropes that they name."""
    count = _size(raw["num_hidden_layers"])
    window = _size(raw["sliding_window"]) if raw.get("sliding_window") else 0
    types = raw.get("layer_types") or [SLIDING if window else FULL] * count
    if unknown := sorted({str(kind) for kind in types} - {FULL, SLIDING}):
        raise KvchatError(
            "model",
            f"{source}: layers of kind {', '.join(unknown)} are not supported "
            f"(supported: {FULL}, {SLIDING})",
        )
    if len(types) != count:
        raise ValueError(f"{len(types)} layer_types for {count} layers")
    if SLIDING in types and not window:
        raise ValueError("sliding layers without a sliding_window")
    local = 1 if len(ropes) > 1 else 0
    kinds = [LayerKind(window, local) if kind == SLIDING else LayerKind() for kind in types]
    if turned is not None and not all(turned):
        ropes = (*ropes, Rope(dim=0))
        kinds = [
            kind if has else LayerKind(kind.window, len(ropes) - 1)
            for kind, has in zip(kinds, turned, strict=True)
        ]
    return tuple(kinds), ropes


def _ropes(
    raw: Raw, local: Raw | None, head_dim: int, positions: int, source: str
) -> tuple[Rope, ...]:
    """That of full layers, then that of sliding ones where it differs.

    transformers 5 writes base and scaling into `rope_parameters`, by kind of layer where they
    differ; older files have them apart.
    """
    found = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if FULL in found:
        local = found.get(SLIDING) or local
        found = found[FULL]
    given = [found] if local is None else [found, local]
    return tuple(_rope(one, raw, head_dim, positions, source) for one in given)


def _rope(scaling: Mapping[str, Any], raw: Raw, head_dim: int, positions: int, source: str) -> Rope:
    theta = float(scaling.get("rope_theta") or raw.get("rope_theta") or 10_000.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ROPE_KINDS:
        raise KvchatError(
            "model",
            f"{source}: RoPE kind {kind!r} is not supported (supported: {', '.join(ROPE_KINDS)})",
            supported=list(ROPE_KINDS),
        )
    if theta <= 1:
        raise KvchatError("model", f"{source}: rope_theta {theta:g} is not above 1")
    part = scaling.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0
    dim = int(head_dim * float(part))
    if not 0 < dim <= head_dim or dim % 2:
        raise KvchatError(
            "model", f"{source}: {dim} of {head_dim} values of a head cannot be rotated"
        )
    if kind == "default":
        return Rope(dim, theta)
    original = _size(
        scaling.get("original_max_position_embeddings")
        or raw.get("original_max_position_embeddings")
        or positions
    )
    if kind == "longrope":
        return _longrope(scaling, dim, theta, original, positions)
    implied = positions / original if kind == "yarn" and not scaling.get("factor") else None
    factor = float(scaling["factor"]) if implied is None else implied
    if factor <= 0:
        raise KvchatError("model", f"{source}: RoPE factor {factor:g} is not above 0")
    if kind in ("linear", "dynamic"):
        return Rope(dim, theta, kind, factor, positions, base=theta)
    if kind == "llama3":
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        original = _size(scaling["original_max_position_embeddings"])
        if not 0 < low < high:
            raise ValueError(f"low_freq_factor {low:g} and high_freq_factor {high:g}")
        return Rope(dim, theta, kind, factor, original, low, high)
    slow, fast = float(scaling.get("beta_slow") or 1), float(scaling.get("beta_fast") or 32)
    if not 0 < slow <= fast:
        raise ValueError(f"beta_slow {slow:g} and beta_fast {fast:g}")
    return Rope(
        dim,
        theta,
        kind,
        factor,
        original,
        low=slow,
        high=fast,
        truncate=bool(scaling.get("truncate", True)),
        attention=_yarn_attention(scaling, factor),
        beta=float(scaling.get("llama_4_scaling_beta") or 0.0),
    )


def _longrope(scaling: Raw, dim: int, theta: float, original: int, positions: int) -> Rope:
    short, long = (tuple(float(x) for x in scaling[key]) for key in ("short_factor", "long_factor"))
    for divisors in (short, long):
        if len(divisors) != dim // 2 or min(divisors) <= 0:
            raise ValueError(f"{len(divisors)} LongRoPE factors for {dim // 2} pairs")
    factor = float(scaling.get("factor") or positions / original)
    attention = scaling.get("attention_factor")
    if attention is None:
        wide = factor > 1
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if wide else 1.0
    return Rope(
        dim,
        theta,
        "longrope",
        factor,
        original,
        divisors_by_length=(short, long),
        attention=float(attention),
    )


def _yarn_attention(scaling: Raw, factor: float) -> float:
    """What multiplies rotated queries and keys: `0.1 ln(factor) + 1` (2309.00071, eq. 22)."""
    if (given := scaling.get("attention_factor")) is not None:
        return float(given)

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    whole, each = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return scale(float(whole)) / scale(float(each)) if whole and each else scale(1.0)


def _reach(ropes: tuple[Rope, ...], positions: int, raw: Raw) -> tuple[int, int]:
    """Tokens of the context window: those trained for, with scaling; and the most to be asked."""
    rope, reach = ropes[0], positions
    if rope.kind == "linear" and raw.get("max_sequence_length"):
        reach = max(positions, _size(raw["max_sequence_length"]))
    if rope.kind == "yarn":  # some files name the positions before scaling
        reach = max(positions, round(rope.factor * rope.original))
    if rope.kind in ("linear", "dynamic"):
        return reach, max(reach, round(rope.factor * positions))
    return reach, reach


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a model's file. Raises KvchatError("model")."""
    if not is_regular(path) and path.exists():
        raise KvchatError("model", f"{path} is no file")
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


def token_ids(value: Any) -> tuple[int, ...]:
    """What a key like `eos_token_id` holds: none, one, or a list. Raises ValueError."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(each) is int for each in ids):
        raise ValueError(f"{value!r:.60} in place of token ids")
    return tuple(ids)


def _require_finite(config: ModelConfig) -> None:
    """Raise ValueError if a number of a config is none that can be computed with."""
    parts: tuple[ModelConfig | Rope, ...] = (config, *config.ropes)
    for part in parts:
        for each in fields(part):
            value = getattr(part, each.name)
            if each.type is float and (isinstance(value, complex) or not math.isfinite(value)):
                raise ValueError(f"{each.name} is {value}")


def _size(value: Any) -> int:
    """A size that a tensor can have. Raises ValueError."""
    number = int(value)
    if not 0 < number < 2**31:
        raise ValueError(f"{number} is not a size")
    return number
