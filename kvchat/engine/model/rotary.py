"""Rotary frequencies of a config, and cosines and sines at positions."""

import math

import torch
from torch import Tensor

from kvchat.engine.model.config import ModelConfig


def frequencies(config: ModelConfig) -> Tensor:
    """Angle per position of each rotated pair, `[D/2]` fp32: `theta^(-2i/D)`, scaled.

    `linear` divides positions by the factor (arXiv 2306.15595). `llama3` divides only wavelengths
    longer than the original context / low_freq_factor, leaves those shorter than
    original / high_freq_factor, and blends between (Llama 3.1 model card).
    """
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    plain = 1.0 / config.rope_theta**exponent
    rope = config.rope
    if rope.kind == "default":
        return plain
    if rope.kind == "linear":
        return plain / rope.factor
    assert rope.kind == "llama3", rope.kind
    turns = rope.original_max_position * plain / (2 * math.pi)  # full turns in the original context
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return plain / rope.factor * (1 - blend) + plain * blend


def angles(inverse: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine `[T, D/2]` fp32 at `positions [T]`."""
    phase = positions.float()[:, None] * inverse[None]
    return phase.cos(), phase.sin()
