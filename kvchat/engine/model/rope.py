"""Frequencies of rotary positions, plain and scaled."""

import math

import torch
from torch import Tensor

from kvchat.engine.model.config import Rope


def frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Angle per position of each rotated pair, `[head_dim/2]` fp32; 0 for pairs that do not turn.

    `linear` divides positions by the factor (arXiv 2306.15595); `dynamic` has changed theta by now.
    `llama3` divides only wavelengths longer than the original context / low, leaves those shorter
    than original / high, and blends between (Llama 3.1 model card). `yarn` (2309.00071) blends by
    the turns that a pair makes in the original context.
    """
    turning = torch.zeros(head_dim // 2)
    if not rope.dim:
        return turning
    exponent = torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim
    plain = 1.0 / rope.theta**exponent
    if rope.divisors:
        plain = plain / torch.tensor(rope.divisors)
    if rope.kind == "linear":
        plain = plain / rope.factor
    elif rope.kind == "llama3":
        turns = rope.original * plain / (2 * math.pi)  # full turns in the original context
        blend = ((turns - rope.low) / (rope.high - rope.low)).clamp(0.0, 1.0)
        plain = plain / rope.factor * (1 - blend) + plain * blend
    elif rope.kind == "yarn":
        first, last = (_pair(rope, turns) for turns in (rope.high, rope.low))
        if rope.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, rope.dim - 1)
        spread = (last - first) or 0.001  # both alike: a step
        ramp = ((torch.arange(rope.dim // 2) - first) / spread).clamp(0.0, 1.0)
        plain = plain / rope.factor * ramp + plain * (1 - ramp)
    turning[: rope.dim // 2] = plain
    return turning


def _pair(rope: Rope, turns: float) -> float:
    """The number of the pair that makes so many turns in the original context."""
    ratio = math.log(rope.original / (turns * 2 * math.pi))
    return rope.dim * ratio / (2 * math.log(rope.theta))
