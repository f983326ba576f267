"""OLMo 2 (arXiv 2501.00656): norms behind attention and MLP, and of all queries and keys."""

from kvchat.engine.model.families import Family, all_biases

FAMILY = Family(
    lambda raw: all_biases(raw) | {"norms": "post", "qk_norm": "whole"},
    defaults={"rms_norm_eps": 1e-5},
    names={
        "post_attention_layernorm": "attention_output_norm",
        "post_feedforward_layernorm": "mlp_output_norm",
    },
)
