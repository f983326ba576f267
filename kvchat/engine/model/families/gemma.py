"""Gemma 2 (arXiv 2408.00118): every other layer slides, logits are capped. Gemma 3 (2503.19786):
five of six slide with positions of their own, and norms of every head's queries and keys stand in
the place of the caps."""

from kvchat.engine.model.families import Family, Fields, Raw, all_biases

NAMES = {
    "post_attention_layernorm": "attention_output_norm",
    "pre_feedforward_layernorm": "post_attention_layernorm",
    "post_feedforward_layernorm": "mlp_output_norm",
}
SHARED = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "hidden_activation": "gelu_pytorch_tanh",
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}


def alternating(raw: Raw, every: int) -> Fields:
    """What both have; one layer of `every` attends to all tokens.

    Hidden states grow beyond what f16 holds, so files in f16 are computed in bf16.
    """
    stored = raw.get("dtype") or raw.get("torch_dtype")
    types = [
        "sliding_attention" if (n + 1) % every else "full_attention"
        for n in range(int(raw["num_hidden_layers"]))
    ]
    found = all_biases(raw) | {
        "norms": "both",
        "norm_plus_one": True,
        "wide_norms": True,
        "embedding_scale": float(raw["hidden_size"]) ** 0.5,
        "query_scale": (float(raw["head_dim"]) / float(raw["query_pre_attn_scalar"])) ** 0.5,
        "attention_cap": float(raw["attn_logit_softcapping"] or 0.0),
        "logit_cap": float(raw["final_logit_softcapping"] or 0.0),
        "layer_types": raw.get("layer_types") or types,
    }
    return found | ({"dtype": "bfloat16"} if stored == "float16" else {})


def gemma3(raw: Raw) -> Fields:
    """Sliding layers have a base of their own and no scaling."""
    local = {"rope_type": "default", "rope_theta": raw.get("rope_local_base_freq", 10_000.0)}
    every = raw.get("sliding_window_pattern") or raw.get("_sliding_window_pattern") or 6
    return alternating(raw, every) | {"qk_norm": "head", "local_rope": local}


GEMMA2 = Family(lambda raw: alternating(raw, 2), SHARED, NAMES)
GEMMA3 = Family(
    gemma3,
    SHARED
    | {
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "rope_theta": 1_000_000.0,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
    },
    NAMES,
)
