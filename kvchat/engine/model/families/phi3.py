"""Phi-3 (arXiv 2404.14219) and Phi-4: joined projections, LongRoPE, a part of each head rotated."""

from kvchat.engine.model.families import Family, Fields, Raw


def fields(raw: Raw) -> Fields:
    """Early files call LongRoPE `su` or `yarn`."""
    scaling = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    kind = scaling.pop("type", None) or scaling.get("rope_type", "default")
    scaling["rope_type"] = "longrope" if kind in ("su", "yarn") else kind
    return {"rope_parameters": scaling}


FAMILY = Family(fields, defaults={"original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5})
