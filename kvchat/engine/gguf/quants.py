"""Numbers out of the blocks of GGUF, by the formats' layouts.

Letters: n blocks; a block's bytes are `[n, size]` uint8, its numbers `[n, values]` fp32.
"""

from collections.abc import Callable

import torch
from torch import Tensor

SUPER = 256  # values of a K-block
NEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # IQ4's levels


def numbers(name: str, blocks: Tensor) -> Tensor:
    """The values of blocks `[n, size]` of a format, `[n, values]` fp32."""
    return READERS[name](blocks)


def groups(name: str, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """4-bit codes `[n, values]` uint8, and of every 32 of them a scale and a minimum `[n, g]`.

    `w = code * scale + minimum`, exactly what the format means: for those of `blocks.GROUPED`.
    """
    if name == "Q4_K":
        scale, low = _scales_k(blocks)
        return _nibbles_k(blocks[:, 16:]), scale, -low
    codes, scale = _nibbles(blocks[:, -16:]), _half(blocks, 0)
    return codes, scale, (-8 * scale if name == "Q4_0" else _half(blocks, 2))


def _half(blocks: Tensor, place: int) -> Tensor:
    """The f16 at byte `place` of every block, `[n, 1]`."""
    return blocks[:, place : place + 2].contiguous().view(torch.float16).float()


def _nibbles(low_high: Tensor) -> Tensor:
    """First all low halves of the bytes, then all high ones."""
    return torch.cat((low_high & 15, low_high >> 4), dim=1)


def _nibbles_k(quants: Tensor) -> Tensor:
    """The same, for every 32 bytes by themselves."""
    parts = quants.view(len(quants), -1, 32)
    return torch.stack((parts & 15, parts >> 4), dim=2).view(len(quants), -1)


def _plain(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda blocks: blocks.contiguous().view(dtype).float()


def _q4(name: str) -> Callable[[Tensor], Tensor]:
    def read(blocks: Tensor) -> Tensor:
        codes, scale, low = groups(name, blocks)
        parts = codes.view(len(blocks), scale.shape[1], 32).float()
        return (parts * scale[..., None] + low[..., None]).view(len(blocks), -1)

    return read


def _fifth(blocks: Tensor, place: int) -> Tensor:
    """The fifth bits of 32 values, in the four bytes at `place`."""
    shifts = torch.arange(8, dtype=torch.uint8)
    bits = blocks[:, place : place + 4, None] >> shifts & 1
    return bits.view(len(blocks), 32) << 4


def _q5_0(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[:, 6:]) | _fifth(blocks, 2)
    return (codes.float() - 16) * _half(blocks, 0)


def _q5_1(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[:, 8:]) | _fifth(blocks, 4)
    return codes.float() * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float() * _half(blocks, 0)


def _pairs(quants: Tensor) -> Tensor:
    """2-bit codes `[n, 256]`: every 32 bytes hold four rows of 32, in rising pairs of bits."""
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    parts = quants.view(len(quants), 2, 1, 32) >> shifts & 3
    return parts.view(len(quants), SUPER)


def _scaled(codes: Tensor, scale: Tensor, low: Tensor | None = None) -> Tensor:
    """`codes [n, 256]` times a scale of every run of them `[n, r]`, minus a minimum."""
    parts = codes.view(*scale.shape, -1).float() * scale[..., None]
    return (parts if low is None else parts - low[..., None]).view(len(codes), SUPER)


def _q2_k(blocks: Tensor) -> Tensor:
    packed = blocks[:, :16]
    scale, low = (packed & 15) * _half(blocks, 80), (packed >> 4) * _half(blocks, 82)
    return _scaled(_pairs(blocks[:, 16:80]), scale, low)


def _q3_k(blocks: Tensor) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8)[:, None]
    high = (blocks[:, None, :32] >> shifts & 1).view(len(blocks), SUPER)  # clear: 4 less
    codes = (_pairs(blocks[:, 32:96]) | high << 2).float() - 4
    packed = blocks[:, 96:108]
    low = torch.cat((packed[:, :8] & 15, packed[:, :8] >> 4), dim=1)
    pairs = torch.cat([packed[:, 8:] >> shift & 3 for shift in (0, 2, 4, 6)], dim=1)
    scale = ((low | pairs << 4).float() - 32) * _half(blocks, 108)
    return _scaled(codes, scale)


def _scales_k(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima `[n, 8]` of Q4_K and Q5_K: six bits each, in twelve bytes."""
    first, second, last = blocks[:, 4:16].view(len(blocks), 3, 4).unbind(dim=1)
    scale = torch.cat((first & 63, last & 15 | first >> 6 << 4), dim=1)
    low = torch.cat((second & 63, last >> 4 | second >> 6 << 4), dim=1)
    return scale * _half(blocks, 0), low * _half(blocks, 2)


def _q5_k(blocks: Tensor) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8)[:, None]
    high = (blocks[:, None, 16:48] >> shifts & 1).view(len(blocks), SUPER)
    return _scaled(_nibbles_k(blocks[:, 48:]) | high << 4, *_scales_k(blocks))


def _q6_k(blocks: Tensor) -> Tensor:
    low = blocks[:, :128].view(-1, 2, 64)
    low = torch.stack((low & 15, low >> 4), dim=2).view(len(blocks), SUPER)
    codes = (low | _pairs(blocks[:, 128:192]) << 4).float() - 32
    scale = blocks[:, 192:208].contiguous().view(torch.int8) * _half(blocks, 208)
    return _scaled(codes, scale)


def _iq4_nl(blocks: Tensor) -> Tensor:
    return torch.tensor(NEAR).float()[_nibbles(blocks[:, 2:]).long()] * _half(blocks, 0)


def _iq4_xs(blocks: Tensor) -> Tensor:
    shifts = 2 * torch.arange(8, dtype=torch.int32)
    high = blocks[:, 2:4].contiguous().view(torch.int16).int() >> shifts & 3
    low = torch.stack((blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4), dim=2).view(len(blocks), 8)
    scale = ((low | high << 4).float() - 32) * _half(blocks, 0)
    parts = blocks[:, 8:].view(len(blocks), 8, 16)
    codes = torch.cat((parts & 15, parts >> 4), dim=2).view(len(blocks), SUPER)
    return _scaled(torch.tensor(NEAR).float()[codes.long()], scale)


READERS: dict[str, Callable[[Tensor], Tensor]] = {
    "F32": _plain(torch.float32),
    "F16": _plain(torch.float16),
    "BF16": _plain(torch.bfloat16),
    "Q4_0": _q4("Q4_0"),
    "Q4_1": _q4("Q4_1"),
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4("Q4_K"),
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
