"""Qwen2 and 2.5 (arXiv 2407.10671): biases of query, key and value. Qwen3 (2505.09388): norms of
every head's queries and keys in their place."""

from kvchat.engine.model.families import Family, Fields, Raw, all_biases


def sliding(raw: Raw) -> Fields:
    """Layers from `max_window_layers` on slide, where that is switched on."""
    if not raw.get("use_sliding_window"):
        return {"layer_types": None, "sliding_window": None}
    first, count = raw.get("max_window_layers", 28), int(raw["num_hidden_layers"])
    types = ["full_attention" if n < first else "sliding_attention" for n in range(count)]
    return {"layer_types": raw.get("layer_types") or types}


QWEN2 = Family(lambda raw: {"qkv_bias": True} | sliding(raw), defaults={"sliding_window": 4096})
QWEN3 = Family(
    lambda raw: all_biases(raw) | {"qk_norm": "head"} | sliding(raw),
    defaults={"head_dim": 128, "sliding_window": 4096},
)
