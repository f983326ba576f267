"""`ModelConfig` from a GGUF file's metadata: as config.json would say it. No torch."""

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvchat.engine.gguf.file import GGUF, TensorInfo
from kvchat.engine.model import hugging_face
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.model.json_values import understood
from kvchat.errors import KvchatError

# what config.json calls each architecture
FAMILIES = {
    "llama": "llama",
    "mistral3": "ministral3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
    "smollm3": "smollm3",
    "granite": "granite",
    "olmo2": "olmo2",
    "glm4": "glm4",
}
INTERLEAVED = ("llama", "mistral3", "granite", "smollm3", "glm4")  # rotated pairs side by side
DTYPES = {0: "float32", 1: "float16"}  # by `general.file_type`; others compute in bf16
LARGEST = {"gemma2": 46, "gemma3": 62}  # layers of the 27B, whose queries are scaled otherwise


def load(path: Path) -> ModelConfig:
    """The config of a file or of all parts of a split one.

    Raises KvchatError("model") naming what is not supported.
    """
    return config_of(GGUF(path))


def config_of(gguf: GGUF) -> ModelConfig:
    """The config that a file's metadata and the names of its tensors mean."""
    architecture = gguf.get("general.architecture")
    if architecture not in FAMILIES:
        what = "is a part of a model" if architecture in ("clip", None) else "is not supported"
        raise KvchatError(
            "model",
            f"{gguf.path}: architecture {architecture!r} {what} (supported: {', '.join(FAMILIES)})",
            "kvchat models  (lists what can be used here)",
            supported=list(FAMILIES),
        )
    if gguf.get("general.type") == "adapter":
        raise KvchatError("model", f"{gguf.path} is an adapter, not a model")
    about = _About(gguf, architecture)
    with understood(str(gguf.path)):
        raw, divisors = _raw(about), about.divisors("rope_freqs.weight")
    config = hugging_face.interpret(raw, str(gguf.path))
    names, (rope, *others) = gguf.tensors, config.ropes
    if divisors and len(divisors) != rope.dim // 2:
        raise KvchatError(
            "model", f"{gguf.path}: {len(divisors)} rope_freqs for {rope.dim // 2} rotated pairs"
        )
    return replace(
        config,
        qkv_bias="blk.0.attn_q.bias" in names or "blk.0.attn_qkv.bias" in names,
        output_bias="blk.0.attn_output.bias" in names,
        mlp_bias="blk.0.ffn_down.bias" in names,
        interleaved=architecture in INTERLEAVED,
        norm_plus_one=False,  # the file has them as they are used
        blocks=_blocks(gguf),
        ropes=(replace(rope, divisors=divisors or rope.divisors), *others),
    )


def _blocks(gguf: GGUF) -> tuple[tuple[str, tuple[int, int], bool, int], ...]:
    """The quantized matrices by format and shape."""
    found = Counter(
        (info.block.name, (info.shape[0], info.shape[1]), not name.startswith("blk."))
        for name, info in gguf.tensors.items()
        if info.block.values > 1 and len(info.shape) == 2
    )
    return tuple((*key, count) for key, count in found.items())


class _About:
    """Metadata of one architecture."""

    def __init__(self, gguf: GGUF, architecture: str):
        self.gguf, self.architecture = gguf, architecture

    def __getitem__(self, name: str) -> Any:
        value = self.gguf[f"{self.architecture}.{name}"]
        if isinstance(value, tuple):  # of every layer; ours are alike
            if len(set(value)) != 1:
                raise KvchatError(
                    "model",
                    f"{self.gguf.path}: layers with different {name} are not supported "
                    f"({', '.join(map(str, sorted(set(value))))})",
                )
            return value[0]
        return value

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if f"{self.architecture}.{name}" in self.gguf else default

    def divisors(self, tensor: str) -> tuple[float, ...]:
        """The numbers of a small tensor in f32 or f16, all above 0; none if it is not there."""
        info: TensorInfo | None = self.gguf.tensors.get(tensor)
        if info is None:
            return ()
        letter = {"F32": "f", "F16": "e"}.get(info.block.name)
        if letter is None or len(info.shape) != 1:
            raise ValueError(f"{tensor} is {info.block.name} {list(info.shape)}")
        with info.path.open("rb") as file:
            file.seek(info.offset)
            found = struct.unpack(f"<{info.shape[0]}{letter}", file.read(info.size))
        if not all(x > 0 for x in found):
            raise ValueError(f"{tensor} has {min(found):g}")
        return found


def _raw(about: _About) -> dict[str, Any]:
    """The keys of config.json."""
    gguf, tensors = about.gguf, about.gguf.tensors
    heads, hidden = about["attention.head_count"], about["embedding_length"]
    dim = about.get("attention.key_length", hidden // heads)
    if about.get("attention.value_length", dim) != dim:
        raise ValueError(f"keys of {dim} and values of {about['attention.value_length']}")
    if about.get("expert_count"):
        raise KvchatError(
            "model",
            f"{gguf.path}: a mixture of {about['expert_count']} experts is not supported",
            "a dense model of the same family",
        )
    ends = [gguf.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    raw = {
        "model_type": FAMILIES[about.architecture],
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": about["feed_forward_length"],
        "num_hidden_layers": about["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": about.get("attention.head_count_kv", heads),
        "head_dim": dim,
        "rms_norm_eps": about["attention.layer_norm_rms_epsilon"],
        "max_position_embeddings": about["context_length"],
        "partial_rotary_factor": about.get("rope.dimension_count", dim) / dim,
        "rope_parameters": _rope(about),
        "tie_word_embeddings": "output.weight" not in tensors,
        "eos_token_id": [end for end in ends if end is not None],
        "sliding_window": about.get("attention.sliding_window"),
        "dtype": DTYPES.get(gguf.get("general.file_type", -1), "bfloat16"),
    }
    return raw | _own(about, dim)


def _own(about: _About, dim: int) -> dict[str, Any]:
    """Keys that one family has."""
    if about.architecture == "granite":
        return {
            "embedding_multiplier": about.get("embedding_scale", 1.0),
            "residual_multiplier": about.get("residual_scale", 1.0),
            "attention_multiplier": about.get("attention.scale", dim**-0.5),
            "logits_scaling": about.get("logit_scale", 1.0),
        }
    if about.architecture in LARGEST:
        large = about["block_count"] == LARGEST[about.architecture]
        width = about["embedding_length"] // about["attention.head_count"]
        usual = (50.0, 30.0, 4096) if about.architecture == "gemma2" else (None, None, None)
        attention, final, window = usual  # of the first files, which do not say
        return {
            "query_pre_attn_scalar": width if large else dim,
            "attn_logit_softcapping": about.get("attn_logit_softcapping", attention),
            "final_logit_softcapping": about.get("final_logit_softcapping", final),
            "sliding_window": about.get("attention.sliding_window", window),
            "rope_local_base_freq": about.get("rope.freq_base_swa", 10_000.0),
        } | _sliding(about)
    return {"sliding_window": None} if about.architecture in ("llama", "phi3") else {}


def _sliding(about: _About) -> dict[str, Any]:
    """Which layers slide, where a file says so: one of so many does not, or layer by layer."""
    found = about.gguf.get(f"{about.architecture}.attention.sliding_window_pattern")
    if found is None:
        return {}
    count = min(about["block_count"], hugging_face.MOST_LAYERS)
    each = found if isinstance(found, tuple) else [(n + 1) % found for n in range(count)]
    return {"layer_types": ["sliding_attention" if slides else "full_attention" for slides in each]}


def _rope(about: _About) -> Mapping[str, Any]:
    """Base and scaling of positions."""
    theta = about.get("rope.freq_base", 10_000.0)
    original = about.get("rope.scaling.original_context_length")
    if "rope_factors_long.weight" in about.gguf.tensors:
        return {
            "rope_type": "longrope",
            "rope_theta": theta,
            "short_factor": about.divisors("rope_factors_short.weight"),
            "long_factor": about.divisors("rope_factors_long.weight"),
            "original_max_position_embeddings": original,
            "attention_factor": about.get("rope.scaling.attn_factor", 1.0),
        }
    kind, factor = about.get("rope.scaling.type") or "linear", about.get("rope.scaling.factor")
    if kind == "none" or (kind == "linear" and not factor):
        kind = "default"
    weight = about.get("rope.scaling.yarn_log_multiplier")
    return {
        "rope_type": kind,
        "rope_theta": theta,
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": about.get("rope.scaling.yarn_beta_fast"),
        "beta_slow": about.get("rope.scaling.yarn_beta_slow"),
        "mscale": weight,
        "mscale_all_dim": weight,
        "llama_4_scaling_beta": about.get("attention.temperature_scale"),
    }
