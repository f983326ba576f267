"""Granite 3: Llama with four scalars."""

from kvchat.engine.model.families import Family, Fields, Raw, all_biases


def fields(raw: Raw) -> Fields:
    """`attention_multiplier` stands in the place of D^-0.5."""
    dim = raw.get("head_dim") or int(raw["hidden_size"]) // int(raw["num_attention_heads"])
    return all_biases(raw) | {
        "embedding_scale": float(raw.get("embedding_multiplier", 1.0)),
        "residual_scale": float(raw.get("residual_multiplier", 1.0)),
        "query_scale": float(raw.get("attention_multiplier", 1.0)) * dim**0.5,
        "logit_divisor": float(raw.get("logits_scaling", 1.0)),
    }


FAMILY = Family(fields)
