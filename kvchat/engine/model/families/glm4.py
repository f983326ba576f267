"""GLM-4-0414: norms before and behind, pairs side by side, half of each head rotated."""

from kvchat.engine.model.families import Family

FAMILY = Family(
    lambda raw: {
        "qkv_bias": bool(raw.get("attention_bias", True)),
        "norms": "both",
        "interleaved": True,
    },
    defaults={
        "num_key_value_heads": 2,
        "head_dim": 128,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1.5625e-7,
        "max_position_embeddings": 131072,
        "eos_token_id": [151329, 151336, 151338],
    },
    names={
        "post_self_attn_layernorm": "attention_output_norm",
        "post_mlp_layernorm": "mlp_output_norm",
    },
)
