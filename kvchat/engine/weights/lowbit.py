"""Weight quantization to 8 and 4 bits, how codes are packed, and back.

Letters: `[out, in]` a weight, T tokens, g values of a group.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from threading import get_ident

import torch
from torch import Tensor

from kvchat.engine.gguf.tensors import Packed

# What the operators compute with, and what scales and zeros are stored in.
WIDE = torch.bfloat16
SLICE = {"cpu": 2**20, "cuda": 2**25}  # values of a weight that are turned back at once
# Those that are stored at once: less, because what is worked with is freed between the codes that
# stay, and the heap keeps it. It takes as long.
STORED = {"cpu": 2**18, "cuda": 2**25}
BLOCK = 32  # values of a group in GGUF
ROWS = 64  # of which a slice is a multiple: operators pack so many together, or a divisor of it


def quantize_rows(weight: Tensor | Packed) -> tuple[Tensor, Tensor]:
    """8 bits: codes `[out, in]` int8 and a bf16 scale per row `[out]`; `w = codes * scale`.

    Codes are rounded with the scale as it is stored, so that rounding it costs nothing.
    """
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(len(weight), dtype=WIDE, device=weight.device)
    for a, b, part in _copied(weight):
        scale[a:b] = torch.maximum(part.amax(dim=1), -part.amin(dim=1)) / 127
        step = scale[a:b].float().where(scale[a:b] > 0, 1.0)
        codes[a:b] = part.div_(step[:, None]).round_().clamp_(-127, 127)
    return codes, scale


def quantize_groups(weight: Tensor | Packed, group: int) -> tuple[Tensor, Tensor]:
    """4 bits: packed codes, and `scales [in/g, out, 2]` (bf16 scale and zero of each group).

    `w = (code - 8) * scale + zero`. The packing is that of the CPU's operator, or plain `pairs`.
    """
    outputs, inputs = weight.shape
    scales = torch.empty(inputs // group, outputs, 2, dtype=WIDE, device=weight.device)
    codes = _store(weight, torch.int32)
    packed = _pack(codes[:ROWS].zero_())  # for its shape
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
        packed[a // each : b // each] = _pack(codes[: b - a].copy_(copied))
    return packed, scales


def pack_groups(weight: Packed) -> tuple[Tensor, Tensor]:
    """The same of a matrix that is stored in 4 bits by groups of 32: its codes as they are."""
    outputs, inputs = weight.shape
    scales = torch.empty(inputs // BLOCK, outputs, 2, dtype=WIDE, device=weight.device)
    parts = []
    for a, b in slices(weight.shape, weight.device, STORED):
        codes, scale, low = weight.groups(slice(a, b))
        scales[:, a:b] = torch.stack((scale, low + 8 * scale), dim=2).transpose(0, 1)
        parts.append(_pack(codes.int()))
    return torch.cat(parts), scales


def fill(place: Tensor, weight: Tensor | Packed) -> Tensor:
    """Write the numbers of a weight into `place`; those of a matrix in blocks by slices."""
    if isinstance(weight, Tensor):
        return place.copy_(weight)
    for a, b in slices(weight.shape, place.device, STORED):
        place[a:b] = weight[a:b]
    return place


@cache
def unpacking() -> Callable[[Tensor, int, int], Tensor] | None:
    """What undoes the packing of the CPU's operator, found by trial; None if nothing does.

    It takes the packed rows, their number n and `in`, and gives codes `[in, n]`.
    """
    codes = torch.randint(16, (2 * ROWS, 128), generator=torch.Generator().manual_seed(0))
    packed = _pack(codes.int())
    for undo in UNPACKINGS:
        try:
            found = undo(packed, *codes.shape)
        except RuntimeError:  # a view that this packing does not have
            continue
        if torch.equal(found.t().long(), codes):
            return undo
    return None


def halves_of(rows: int) -> bool:
    """Whether the CPU's operator packs blocks of so many rows, half of them in each half byte."""
    undo = unpacking()
    return isinstance(undo, partial) and undo.func is _halves and undo.args == (rows,)


def _copied(weight: Tensor | Packed) -> Iterator[tuple[int, int, Tensor]]:
    """Slices `a, b` of rows with their numbers in f32, always in the same store."""
    wide = _store(weight, torch.float32)
    for a, b in slices(weight.shape, weight.device, STORED):
        yield a, b, wide[: b - a].copy_(weight[a:b])


def _store(weight: Tensor | Packed, dtype: torch.dtype) -> Tensor:
    """Room for a slice of rows of `weight`."""
    rows, inputs = slices(weight.shape, weight.device, STORED)[0][1], weight.shape[1]
    values = max(STORED[weight.device.type], ROWS * inputs)
    own = room(values, dtype, weight.device, get_ident())
    return own[: rows * inputs].view(rows, inputs)


@cache
def room(values: int, dtype: torch.dtype, device: torch.device, thread: int) -> Tensor:
    """A workspace of a thread, the same until `room.cache_clear()` when loading is over: new ones
    for every matrix would leave holes in the heap between the codes that stay."""
    with torch.inference_mode(False):  # or it could not be written to outside of it
        return torch.empty(values, dtype=dtype, device=device)


def slices(
    shape: tuple[int, ...], device: torch.device, values: dict[str, int] = SLICE
) -> list[tuple[int, int]]:
    """Ranges of the rows of a weight of shape `[out, in]` that are worked on at once: about so many
    `values` on a device."""
    outputs, inputs = shape
    step = max(values[device.type] // inputs // ROWS, 1) * ROWS
    return [(a, min(a + step, outputs)) for a in range(0, outputs, step)]


def numbers(packed: Tensor, scales: Tensor, group: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """The transposed weight `[in, n]` on a CPU, a slice of rows after the other."""
    undo = unpacking()
    assert undo is not None
    groups, outputs, _ = scales.shape
    each = outputs // len(packed)  # rows of the weight in one of `packed`
    for a, b in slices((outputs, groups * group), packed.device):
        codes = undo(packed[a // each : b // each], b - a, groups * group).to(dtype)
        codes = codes.view(groups, group, b - a).sub_(8)
        scale, zero = scales[:, None, a:b].to(dtype).unbind(-1)  # [in/g, 1, n]
        part = torch.addcmul(zero.contiguous(), codes, scale.contiguous())
        yield part.view(-1, b - a)


def operator(x: Tensor, packed: Tensor, scales: Tensor, group: int) -> Tensor:
    """`x [T, in]` (bf16) times the transposed weight of `quantize_groups`, by torch's operator on
    a CPU."""
    return torch._weight_int4pack_mm_for_cpu(x, packed, group, scales)


def _pack(codes: Tensor) -> Tensor:
    """Codes `[out, in]` int32 as torch's operator on a CPU takes them, as our kernels elsewhere."""
    if codes.device.type == "cpu":
        return torch._convert_weight_to_int4pack_for_cpu(codes, 1)
    return pairs(codes)


def pairs(codes: Tensor) -> Tensor:
    """Codes `[out, in]`, two neighbours in a byte `[out, in / 2]`; see `ops.int4_numbers`."""
    return (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)


def _halves(block: int, packed: Tensor, outputs: int, inputs: int) -> Tensor:
    """Blocks of rows; a byte holds a row of the block's first half and one of its second."""
    lines = packed.view(outputs // block, inputs, 1, block // 2).transpose(0, 1)
    return torch.cat((lines & 15, lines >> 4), dim=2).view(inputs, outputs)


def _pairs(block: int, packed: Tensor, outputs: int, inputs: int) -> Tensor:
    """Blocks of rows; a byte holds two neighbours."""
    lines = packed.view(outputs // block, inputs, block // 2, 1).transpose(0, 1)
    return torch.cat((lines & 15, lines >> 4), dim=3).view(inputs, outputs)


UNPACKINGS: tuple[Callable[[Tensor, int, int], Tensor], ...] = (
    partial(_halves, 64),  # AVX-512
    partial(_halves, 32),  # AVX2
    partial(_pairs, 32),
    partial(_pairs, 16),
)
