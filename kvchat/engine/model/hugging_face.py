"""`ModelConfig` from config.json: beside `rope_scaling.py` the only reader of Hugging Face keys. No
torch."""

import math
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from kvchat.engine.model import MODELS, NESTED
from kvchat.engine.model.config import LayerKind, ModelConfig, Rope
from kvchat.engine.model.families import Family, Fields, Raw
from kvchat.engine.model.json_values import read_json, size_of, token_ids, understood
from kvchat.engine.model.rope_scaling import FULL, SLIDING, reach_of, ropes_of
from kvchat.engine.sizes import ITEM_BYTES
from kvchat.errors import KvchatError

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
MOST_LAYERS = 1000  # more are a damaged file, and would take all memory


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
    with understood(source):
        config = _read(dict(raw), source)
        _require_finite(config)
        return config


def _read(given: dict[str, Any], source: str) -> ModelConfig:
    name = given["model_type"]
    if (count := size_of(given.get("num_hidden_layers") or 1)) > MOST_LAYERS:
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
    heads, hidden = size_of(raw["num_attention_heads"]), size_of(raw["hidden_size"])
    kv_heads = size_of(raw.get("num_key_value_heads") or heads)
    head_dim = size_of(raw.get("head_dim") or hidden // heads)
    if heads % kv_heads:
        raise KvchatError(
            "model", f"{source}: {heads} query heads do not divide into {kv_heads} KV heads"
        )
    if head_dim % 2:
        raise KvchatError("model", f"{source}: head_dim {head_dim} is odd; RoPE needs pairs")
    positions = size_of(raw.get("max_position_embeddings", 2048))
    turned = own.pop("turned", None)
    ropes = ropes_of(raw, own.pop("local_rope", None), head_dim, positions, source)
    layers, ropes = _layers(raw, ropes, turned, source)
    reach, stretched = reach_of(ropes, positions, raw)
    if all(kind.window for kind in layers):  # nothing to compress, nothing seen beyond
        window = size_of(raw["sliding_window"])
        reach, stretched = min(reach, window), min(stretched, window)
        layers = tuple(LayerKind(rope=kind.rope) for kind in layers)
    dtype = str(raw.get("dtype") or raw.get("torch_dtype") or "float32")
    config = ModelConfig(
        **{
            "family": name,
            "vocab_size": size_of(raw["vocab_size"]),
            "hidden_size": hidden,
            "intermediate_size": size_of(raw["intermediate_size"]),
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
    count = size_of(raw["num_hidden_layers"])
    window = size_of(raw["sliding_window"]) if raw.get("sliding_window") else 0
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


def _require_finite(config: ModelConfig) -> None:
    """Raise ValueError if a number of a config is none that can be computed with."""
    parts: tuple[ModelConfig | Rope, ...] = (config, *config.ropes)
    for part in parts:
        for each in fields(part):
            value = getattr(part, each.name)
            if each.type is float and (isinstance(value, complex) or not math.isfinite(value)):
                raise ValueError(f"{each.name} is {value}")
