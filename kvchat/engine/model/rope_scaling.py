"""Rotary positions as a config.json describes them: base, scaling, and the window they reach."""

import math
from collections.abc import Mapping
from typing import Any

from kvchat.engine.model.config import Rope
from kvchat.engine.model.families import Raw
from kvchat.engine.model.json_values import size_of
from kvchat.errors import KvchatError

FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers
ROPE_KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


def ropes_of(
    raw: Raw, local: Raw | None, head_dim: int, positions: int, source: str
) -> tuple[Rope, ...]:
    """That of full layers, then that of sliding ones where it differs.

    transformers 5 writes base and scaling into `rope_parameters`, by kind of layer where they
    differ; older files have them apart.
    """
    found = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if FULL in found:
        local = found.get(SLIDING) or local
        found = found[FULL]
    given = [found] if local is None else [found, local]
    return tuple(_rope(one, raw, head_dim, positions, source) for one in given)


def _rope(scaling: Mapping[str, Any], raw: Raw, head_dim: int, positions: int, source: str) -> Rope:
    theta = float(scaling.get("rope_theta") or raw.get("rope_theta") or 10_000.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ROPE_KINDS:
        raise KvchatError(
            "model",
            f"{source}: RoPE kind {kind!r} is not supported (supported: {', '.join(ROPE_KINDS)})",
            supported=list(ROPE_KINDS),
        )
    if theta <= 1:
        raise KvchatError("model", f"{source}: rope_theta {theta:g} is not above 1")
    part = scaling.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0
    dim = int(head_dim * float(part))
    if not 0 < dim <= head_dim or dim % 2:
        raise KvchatError(
            "model", f"{source}: {dim} of {head_dim} values of a head cannot be rotated"
        )
    if kind == "default":
        return Rope(dim, theta)
    original = size_of(
        scaling.get("original_max_position_embeddings")
        or raw.get("original_max_position_embeddings")
        or positions
    )
    if kind == "longrope":
        return _longrope(scaling, dim, theta, original, positions)
    implied = positions / original if kind == "yarn" and not scaling.get("factor") else None
    factor = float(scaling["factor"]) if implied is None else implied
    if factor <= 0:
        raise KvchatError("model", f"{source}: RoPE factor {factor:g} is not above 0")
    if kind in ("linear", "dynamic"):
        return Rope(dim, theta, kind, factor, positions, base=theta)
    if kind == "llama3":
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        original = size_of(scaling["original_max_position_embeddings"])
        if not 0 < low < high:
            raise ValueError(f"low_freq_factor {low:g} and high_freq_factor {high:g}")
        return Rope(dim, theta, kind, factor, original, low, high)
    slow, fast = float(scaling.get("beta_slow") or 1), float(scaling.get("beta_fast") or 32)
    if not 0 < slow <= fast:
        raise ValueError(f"beta_slow {slow:g} and beta_fast {fast:g}")
    return Rope(
        dim,
        theta,
        kind,
        factor,
        original,
        low=slow,
        high=fast,
        truncate=bool(scaling.get("truncate", True)),
        attention=_yarn_attention(scaling, factor),
        beta=float(scaling.get("llama_4_scaling_beta") or 0.0),
    )


def _longrope(scaling: Raw, dim: int, theta: float, original: int, positions: int) -> Rope:
    short, long = (tuple(float(x) for x in scaling[key]) for key in ("short_factor", "long_factor"))
    for divisors in (short, long):
        if len(divisors) != dim // 2 or min(divisors) <= 0:
            raise ValueError(f"{len(divisors)} LongRoPE factors for {dim // 2} pairs")
    factor = float(scaling.get("factor") or positions / original)
    attention = scaling.get("attention_factor")
    if attention is None:
        wide = factor > 1
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if wide else 1.0
    return Rope(
        dim,
        theta,
        "longrope",
        factor,
        original,
        divisors_by_length=(short, long),
        attention=float(attention),
    )


def _yarn_attention(scaling: Raw, factor: float) -> float:
    """What multiplies rotated queries and keys: `0.1 ln(factor) + 1` (2309.00071, eq. 22)."""
    if (given := scaling.get("attention_factor")) is not None:
        return float(given)

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    whole, each = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return scale(float(whole)) / scale(float(each)) if whole and each else scale(1.0)


def reach_of(ropes: tuple[Rope, ...], positions: int, raw: Raw) -> tuple[int, int]:
    """Tokens of the context window: those trained for, with scaling; and the most to be asked."""
    rope, reach = ropes[0], positions
    if rope.kind == "linear" and raw.get("max_sequence_length"):
        reach = max(positions, size_of(raw["max_sequence_length"]))
    if rope.kind == "yarn":  # some files name the positions before scaling
        reach = max(positions, round(rope.factor * rope.original))
    if rope.kind in ("linear", "dynamic"):
        return reach, max(reach, round(rope.factor * positions))
    return reach, reach
