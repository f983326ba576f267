"""SmolLM3: Llama, but every fourth layer has no positions (NoPE, arXiv 2501.18795)."""

from kvchat.engine.model.families import Family, Fields, Raw, all_biases


def fields(raw: Raw) -> Fields:
    """`no_rope_layers` is 0 where a layer has none."""
    every, count = raw.get("no_rope_layer_interval", 4), int(raw["num_hidden_layers"])
    turned = raw.get("no_rope_layers") or [int((n + 1) % every != 0) for n in range(count)]
    slides = raw.get("use_sliding_window") and raw.get("sliding_window")
    types = raw.get("layer_types") or [
        "sliding_attention" if slides and not has else "full_attention" for has in turned[:count]
    ]
    return all_biases(raw) | {"layer_types": types, "turned": [bool(has) for has in turned[:count]]}


FAMILY = Family(fields, defaults={"rope_theta": 2_000_000.0, "tie_word_embeddings": True})
