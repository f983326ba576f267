"""Weights in 8 and 4 bits: quantising, products by torch's weight-only operators, and back.

Knows no module and no checkpoint. Letters: `[out, in]` a weight, T tokens, g values of a group.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn.functional import linear

# What the operators compute with, and what scales and zeros are stored in.
WIDE = torch.bfloat16
# For more tokens than this a product with the weight turned back, slice by slice, is faster.
FEW = 64
SLICE = {"cpu": 2**20, "cuda": 2**25}  # values of a weight that are turned back at once
ROWS = 64  # of which a slice is a multiple: operators pack so many together, or a divisor of it


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """8 bits: codes `[out, in]` int8 and a bf16 scale per row `[out]`; `w = codes * scale`.

    Codes are rounded with the scale as it is stored, so that rounding it costs nothing.
    """
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(len(weight), dtype=WIDE, device=weight.device)
    for a, b, part in _copied(weight):
        scale[a:b] = torch.linalg.vector_norm(part, torch.inf, dim=1) / 127
        step = scale[a:b].float().where(scale[a:b] > 0, 1.0)
        codes[a:b] = part.div_(step[:, None]).round_().clamp_(-127, 127)
    return codes, scale


def quantize_groups(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """4 bits: packed codes, and `scales [in/g, out, 2]` (bf16 scale and zero of each group).

    `w = (code - 8) * scale + zero`. The packing is that of the device's operator.
    """
    outputs, inputs = weight.shape
    scales = torch.empty(inputs // group, outputs, 2, dtype=WIDE, device=weight.device)
    codes = _store(weight, torch.int32)
    packed = _pack(codes[:ROWS].zero_(), group)  # for its shape
    each = ROWS // len(packed)  # rows of the weight in one of `packed`
    packed = packed.new_empty(outputs // each, *packed.shape[1:])
    for a, b, copied in _copied(weight):
        part = copied.view(-1, inputs // group, group)
        low, high = part.amin(dim=2), part.amax(dim=2)
        scale = ((high - low) / 15).to(WIDE)
        zero = (low + 8 * scale.float()).to(WIDE)
        scales[:, a:b] = torch.stack((scale, zero), dim=2).transpose(0, 1)
        step = scale.float().where(scale > 0, 1.0)
        part.sub_(zero.float()[..., None]).div_(step[..., None]).round_().add_(8).clamp_(0, 15)
        packed[a // each : b // each] = _pack(codes[: b - a].copy_(copied), group)
    return packed, scales


def rows_product(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """`x [T, in]` times the transposed weight of `quantize_rows`: `[T, out]`, the dtype of `x`.

    A few tokens on a CPU go through the operator, which takes `x` in bf16. On CUDA torch's operator
    walks a row per thread, slower than turning the weight back.
    """
    if len(x) <= FEW and x.device.type == "cpu":
        return torch._weight_int8pack_mm(x.to(WIDE), codes, scale).to(x.dtype)
    parts = [linear(x, codes[a:b].to(x.dtype)) for a, b in _slices(codes)]
    return torch.cat(parts, dim=1).mul_(scale.to(x.dtype))


def entries_dense(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight `[out, in]` of `quantize_rows` as numbers."""
    return codes.to(dtype).mul_(scale[:, None].to(dtype))


def groups_product(x: Tensor, packed: Tensor, scales: Tensor, group: int) -> Tensor:
    """`x [T, in]` times the transposed weight of `quantize_groups`: `[T, out]`, the dtype of `x`.

    A few tokens go through the operator, which takes `x` in bf16; so do all where the packing is
    not known.
    """
    if len(x) <= FEW or unpacking(x.device.type) is None:
        return _operator(x.to(WIDE), packed, scales, group).to(x.dtype)
    return torch.cat([x @ part for part in _numbers(packed, scales, group, x.dtype)], dim=1)


def groups_dense(packed: Tensor, scales: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    """The weight `[out, in]` of `quantize_groups` as numbers."""
    if unpacking(packed.device.type) is None:
        one = torch.eye(len(scales) * group, dtype=WIDE, device=packed.device)
        return _operator(one, packed, scales, group).t().to(dtype)
    return torch.cat([part.t() for part in _numbers(packed, scales, group, dtype)])


@cache
def unpacking(device: str) -> Callable[[Tensor, int, int], Tensor] | None:
    """What undoes the packing of a device's operator, found by trial; None if nothing does.

    It takes the packed rows, their number n and `in`, and gives codes `[in, n]`.
    """
    codes = torch.randint(16, (2 * ROWS, 128), generator=torch.Generator().manual_seed(0))
    packed = _pack(codes.int().to(device), group=128)
    for undo in UNPACKINGS:
        try:
            found = undo(packed, *codes.shape)
        except RuntimeError:  # a view that this packing does not have
            continue
        if torch.equal(found.cpu().t().long(), codes):
            return undo
    return None


def _copied(weight: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Slices `a, b` of rows with their numbers in f32, always in the same store."""
    wide = _store(weight, torch.float32)
    for a, b in _slices(weight):
        yield a, b, wide[: b - a].copy_(weight[a:b])


def _store(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for a slice of rows of `weight`."""
    rows, inputs = _slices(weight)[0][1], weight.shape[1]
    values = max(SLICE[weight.device.type], ROWS * inputs)
    return room(values, dtype, weight.device)[: rows * inputs].view(rows, inputs)


@cache
def room(values: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A workspace, the same until `room.cache_clear()` when loading is over: new ones for every
    matrix would leave holes in the heap between the codes that stay."""
    with torch.inference_mode(False):  # or it could not be written to outside of it
        return torch.empty(values, dtype=dtype, device=device)


def _slices(weight: Tensor) -> list[tuple[int, int]]:
    """Ranges of the rows of `weight [out, in]` that are worked on at once."""
    return _cuts(weight.shape[0], weight.shape[1], weight.device.type)


def _cuts(outputs: int, inputs: int, device: str) -> list[tuple[int, int]]:
    step = max(SLICE[device] // inputs // ROWS, 1) * ROWS
    return [(a, min(a + step, outputs)) for a in range(0, outputs, step)]


def _numbers(packed: Tensor, scales: Tensor, group: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """The transposed weight `[in, n]`, a slice of rows after the other."""
    undo = unpacking(packed.device.type)
    assert undo is not None
    groups, outputs, _ = scales.shape
    each = outputs // len(packed)  # rows of the weight in one of `packed`
    for a, b in _cuts(outputs, groups * group, packed.device.type):
        codes = undo(packed[a // each : b // each], b - a, groups * group).to(dtype)
        codes = codes.view(groups, group, b - a).sub_(8)
        scale, zero = scales[:, None, a:b].to(dtype).unbind(-1)  # [in/g, 1, n]
        part = torch.addcmul(zero.contiguous(), codes, scale.contiguous())
        yield part.view(-1, b - a)


def _operator(x: Tensor, packed: Tensor, scales: Tensor, group: int) -> Tensor:
    if x.device.type == "cpu":
        return torch._weight_int4pack_mm_for_cpu(x, packed, group, scales)
    return torch._weight_int4pack_mm(x, packed, group, scales)


def _pack(codes: Tensor, group: int) -> Tensor:
    """Codes `[out, in]` int32 as the operator of their device takes them."""
    if codes.device.type == "cpu":
        return torch._convert_weight_to_int4pack_for_cpu(codes, 1)
    pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
    return torch._convert_weight_to_int4pack(pairs, group // 16)


def _halves(block: int, packed: Tensor, outputs: int, inputs: int) -> Tensor:
    """Blocks of rows; a byte holds a row of the block's first half and one of its second."""
    lines = packed.view(outputs // block, inputs, 1, block // 2).transpose(0, 1)
    return torch.cat((lines & 15, lines >> 4), dim=2).view(inputs, outputs)


def _pairs(block: int, packed: Tensor, outputs: int, inputs: int) -> Tensor:
    """Blocks of rows; a byte holds two neighbours."""
    lines = packed.view(outputs // block, inputs, block // 2, 1).transpose(0, 1)
    return torch.cat((lines & 15, lines >> 4), dim=3).view(inputs, outputs)


def _tiles(packed: Tensor, outputs: int, inputs: int) -> Tensor:
    """Tensor-core tiles of CUDA, `[out/8, in/16J', 32, J']` int32: lane `4 * row + c` has columns
    2c, 2c+1, 2c+8 and 2c+9 of two tiles of 16, first the even ones."""
    shifts = 4 * torch.arange(8, dtype=torch.int32, device=packed.device)
    codes = (packed[..., None] >> shifts) & 15
    codes = codes.view(outputs // 8, packed.shape[1], 8, 4, packed.shape[3], 2, 2, 2)
    # out/8, K, row, c, j, odd, tile, half -> K, j, tile, half, c, odd, out/8, row
    return codes.permute(1, 4, 6, 7, 3, 5, 0, 2).reshape(inputs, outputs)


UNPACKINGS: tuple[Callable[[Tensor, int, int], Tensor], ...] = (
    partial(_halves, 64),  # AVX-512
    partial(_halves, 32),  # AVX2
    partial(_pairs, 32),
    partial(_pairs, 16),
    _tiles,
)
