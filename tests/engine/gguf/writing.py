"""GGUF files made of tiny Hugging Face checkpoints, in llama.cpp's conventions: its names, its
metadata, and rotated pairs side by side where it wants them so."""

import math
from pathlib import Path

import gguf
import numpy as np
import torch

from kvchat.engine.gguf.tensors import NAMES, PARTS
from kvchat.engine.model.gguf import FAMILIES, INTERLEAVED
from kvchat.engine.weights.names import LAYER

ARCHITECTURES = {family: name for name, family in FAMILIES.items()}
OURS = {ours: theirs for theirs, ours in NAMES.items()}
# as Hugging Face calls them, where that is not what we do
NORMS = {
    "olmo2": {
        "post_attention_layernorm": "post_attention_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
    "glm4": {
        "post_self_attn_layernorm": "post_attention_norm",
        "post_mlp_layernorm": "post_ffw_norm",
    },
    "gemma": {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
}


def write(
    path: Path, oracle, kind: str = "F32", splits: int = 1, vectors: str = "F32", **more
) -> Path:
    """The weights and shapes of a transformers model; `more` is metadata.

    Matrices are written as `kind`, norms and biases as `vectors`.
    """
    config = oracle.config
    family = config.model_type
    architecture = ARCHITECTURES[family]
    tensors = dict(_tensors(oracle, family, architecture))
    if not config.tie_word_embeddings:
        tensors["output.weight"] = oracle.lm_head.weight
    rope = dict(_ropes(config))
    tensors |= {name: torch.tensor(x) for name, x in rope.items() if name.endswith(".weight")}
    about = {name: x for name, x in rope.items() if not name.endswith(".weight")}
    names = list(tensors)
    for part in range(splits):
        where = path if splits == 1 else path.with_name(
            f"{path.stem}-{part + 1:05}-of-{splits:05}.gguf"
        )  # fmt: skip
        writer = gguf.GGUFWriter(where, architecture)
        if splits > 1:
            writer.add_uint16("split.no", part)
            writer.add_uint16("split.count", splits)
        if part == 0:
            _metadata(writer, config, architecture, about | more)
        for name in names[part::splits]:
            data = tensors[name].detach().float().numpy()
            _tensor(writer, name, data, vectors if data.ndim < 2 else kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path if splits == 1 else path.with_name(f"{path.stem}-00001-of-{splits:05}.gguf")


def _tensor(writer, name: str, data: np.ndarray, kind: str) -> None:
    quant = gguf.GGMLQuantizationType[kind]
    if kind == "F32":
        writer.add_tensor(name, data)
    elif kind == "F16":
        writer.add_tensor(name, data.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quants.quantize(data, quant), raw_dtype=quant)


def _tensors(oracle, family: str, architecture: str):
    config, theirs = oracle.config, {ours: theirs for theirs, ours in PARTS.items()}
    norms = NORMS.get("gemma" if family.startswith("gemma") else family, {})
    theirs["mlp.gate_up_proj"] = "ffn_up"
    for name, tensor in oracle.state_dict().items():
        if name == "lm_head.weight":
            continue
        if family.startswith("gemma") and "norm" in name:
            tensor = tensor + 1
        if (found := LAYER.fullmatch(name)) is None:
            yield OURS[name], tensor
            continue
        module, _, leaf = found[2].rpartition(".")
        part = norms.get(module) or theirs[module]
        paired = architecture in INTERLEAVED and family != "glm4"  # its files have them so
        if paired and part in ("attn_q", "attn_k"):
            heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
            halves = tensor.view(heads, 2, -1, *tensor.shape[1:])
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        yield f"blk.{found[1]}.{part}.{leaf}", tensor


def _metadata(writer, config, architecture: str, more: dict) -> None:
    heads = config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(0)
    window = getattr(config, "sliding_window", None)
    if architecture in ("gemma2", "gemma3"):
        writer.add_sliding_window(window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if architecture == "granite":
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if not {key for key in more if key.startswith("tokenizer.")}:
        writer.add_tokenizer_model("no_vocab")
    for name, value in more.items():
        key = name if name.startswith(("tokenizer.", "general.")) else f"{architecture}.{name}"
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
               str: writer.add_string}.get(type(value), writer.add_array)  # fmt: skip
        add(key, value)


def _ropes(config):
    """Metadata of positions, and the small tensors that go with them."""
    every = config.rope_parameters
    local = every.get("sliding_attention")
    rope = every.get("full_attention", every)
    heads = config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    yield "rope.freq_base", float(rope["rope_theta"])
    yield "rope.dimension_count", int(dim * rope.get("partial_rotary_factor", 1.0))
    if local:
        yield "rope.freq_base_swa", float(local["rope_theta"])
    kind = rope["rope_type"]
    if kind == "longrope":
        yield "rope.scaling.original_context_length", rope["original_max_position_embeddings"]
        original = rope["original_max_position_embeddings"]
        factor = config.max_position_embeddings / original
        yield "rope.scaling.attn_factor", (1 + math.log(factor) / math.log(original)) ** 0.5
        yield "rope_factors_short.weight", rope["short_factor"]
        yield "rope_factors_long.weight", rope["long_factor"]
    elif kind in ("linear", "yarn"):
        yield "rope.scaling.type", kind
        yield "rope.scaling.factor", float(rope["factor"])
        if kind == "yarn":
            yield "rope.scaling.original_context_length", rope["original_max_position_embeddings"]
        if rope.get("mscale_all_dim"):
            yield "rope.scaling.yarn_log_multiplier", float(rope["mscale_all_dim"])
        if rope.get("llama_4_scaling_beta"):
            yield "attention.temperature_scale", float(rope["llama_4_scaling_beta"])
    elif kind == "llama3":
        yield "rope_freqs.weight", _llama3(rope, dim)


def _llama3(rope: dict, dim: int) -> list[float]:
    """What divides each frequency, as llama.cpp's files have it."""
    from kvchat.engine.model.config import Rope
    from kvchat.engine.model.rope import frequencies

    plain = Rope(dim, rope["rope_theta"])
    scaled = Rope(
        dim, rope["rope_theta"], "llama3", rope["factor"],
        rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"],
    )  # fmt: skip
    return (frequencies(plain, dim) / frequencies(scaled, dim)).tolist()
