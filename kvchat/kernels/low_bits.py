"""Products of a few rows with weights in 8 or 4 bits, which are read once and never turned back in
memory; and all numbers of a weight in 4 bits, for products of many rows."""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_ROWS = 64  # of `x`, that one program takes


@triton.jit
def _numbers(
    packed, scales, rows, a, outputs, inputs, scale_group, scale_row, GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr
):  # fmt: skip
    """Bytes `a : a + BLOCK_B` of `rows [N]`: the numbers in their low and high halves, `[N, B]`."""
    byte = a + tl.arange(0, BLOCK_B)
    live = (rows < outputs)[:, None] & (byte < inputs // 2)[None, :]
    pair = tl.load(packed + rows.to(tl.int64)[:, None] * (inputs // 2) + byte, mask=live, other=0)
    # bytes that share a scale, and how many such parts a block has
    part: tl.constexpr = GROUP // 2 if GROUP // 2 < BLOCK_B else BLOCK_B
    each: tl.constexpr = BLOCK_B // part
    g = (a + tl.arange(0, each) * part) // (GROUP // 2)
    known = (rows < outputs)[:, None] & (g < inputs // GROUP)[None, :]
    at = g.to(tl.int64)[None, :] * scale_group + rows[:, None] * scale_row
    scale = tl.load(scales + at, mask=known, other=0.0).to(tl.float32)[:, :, None]
    zero = tl.load(scales + at + 1, mask=known, other=0.0).to(tl.float32)[:, :, None]
    pair = tl.reshape(pair, [BLOCK_N, each, part])
    low = (pair & 15).to(tl.float32) - 8.0
    high = (pair >> 4).to(tl.float32) - 8.0
    low = tl.reshape(low * scale + zero, [BLOCK_N, BLOCK_B])
    high = tl.reshape(high * scale + zero, [BLOCK_N, BLOCK_B])
    return low, high


@triton.jit
def _four(
    x, packed, scales, bias, y, tokens, outputs, inputs, x_row, scale_group, scale_row,
    GROUP: tl.constexpr, BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr
):  # fmt: skip
    """BLOCK_N outputs of all rows. Even and odd inputs are two products: nothing is shuffled."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    kind: tl.constexpr = x.dtype.element_ty
    for a in range(0, inputs // 2, BLOCK_B):
        byte = a + tl.arange(0, BLOCK_B)
        inside = (m < tokens)[:, None] & (byte < inputs // 2)[None, :]
        at = x + m[:, None] * x_row + 2 * byte[None, :]
        even = tl.load(at, mask=inside, other=0.0)
        odd = tl.load(at + 1, mask=inside, other=0.0)
        low, high = _numbers(
            packed, scales, rows, a, outputs, inputs, scale_group, scale_row, GROUP, BLOCK_N,
            BLOCK_B
        )  # fmt: skip
        acc = tl.dot(even, tl.trans(low.to(kind)), acc, input_precision="ieee")
        acc = tl.dot(odd, tl.trans(high.to(kind)), acc, input_precision="ieee")
    if BIAS:
        acc += tl.load(bias + rows, mask=rows < outputs, other=0.0).to(tl.float32)[None, :]
    inside = (m < tokens)[:, None] & (rows < outputs)[None, :]
    tl.store(y + m.to(tl.int64)[:, None] * outputs + rows[None, :], acc.to(kind), mask=inside)


@triton.jit
def _eight(
    x, codes, scale, bias, y, tokens, outputs, inputs, x_row,
    BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """BLOCK_N outputs of all rows; a code is a number of 16 bits without rounding."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    kind: tl.constexpr = x.dtype.element_ty
    for a in range(0, inputs, BLOCK_K):
        k = a + tl.arange(0, BLOCK_K)
        inside = (m < tokens)[:, None] & (k < inputs)[None, :]
        some = tl.load(x + m[:, None] * x_row + k[None, :], mask=inside, other=0.0)
        live = (rows < outputs)[:, None] & (k < inputs)[None, :]
        at = rows.to(tl.int64)[:, None] * inputs + k[None, :]
        numbers = tl.load(codes + at, mask=live, other=0).to(tl.float32).to(kind)
        acc = tl.dot(some, tl.trans(numbers), acc, input_precision="ieee")
    acc *= tl.load(scale + rows, mask=rows < outputs, other=0.0).to(tl.float32)[None, :]
    if BIAS:
        acc += tl.load(bias + rows, mask=rows < outputs, other=0.0).to(tl.float32)[None, :]
    inside = (m < tokens)[:, None] & (rows < outputs)[None, :]
    tl.store(y + m.to(tl.int64)[:, None] * outputs + rows[None, :], acc.to(kind), mask=inside)


@triton.jit
def _turned_back(
    packed, scales, out, outputs, inputs, scale_group, scale_row, GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr
):  # fmt: skip
    """BLOCK_N rows of BLOCK_B bytes."""
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    a = tl.program_id(0) * BLOCK_B
    low, high = _numbers(
        packed, scales, rows, a, outputs, inputs, scale_group, scale_row, GROUP, BLOCK_N, BLOCK_B
    )
    k = 2 * a + tl.arange(0, 2 * BLOCK_B)
    inside = (rows < outputs)[:, None] & (k < inputs)[None, :]
    at = rows.to(tl.int64)[:, None] * inputs + k[None, :]
    tl.store(out + at, tl.interleave(low, high).to(out.dtype.element_ty), mask=inside)


def _rows(tokens: int) -> int:
    assert 0 < tokens <= MAX_ROWS, tokens
    return max(16, triton.next_power_of_2(tokens))


def int8_product(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """See the reference; at most `MAX_ROWS` rows of `x`."""
    tokens, inputs = x.shape
    outputs = len(codes)
    assert x.stride(1) == 1 and codes.is_contiguous() and codes.shape[1] == inputs, codes.shape
    y = x.new_empty(tokens, outputs)
    exact = x.element_size() == 4  # products without tensor cores: larger blocks spill
    _eight[(triton.cdiv(outputs, 16),)](
        x, codes, scale, scale if bias is None else bias, y, tokens, outputs, inputs, x.stride(0),
        BIAS=bias is not None, BLOCK_M=_rows(tokens), BLOCK_N=16, BLOCK_K=32 if exact else 256,
        num_warps=4, num_stages=2 if exact else 3,
    )  # fmt: skip
    return y


def int4_product(x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """See the reference; at most `MAX_ROWS` rows of `x`."""
    tokens, inputs = x.shape
    outputs, group = _checked(packed, scales)
    assert x.stride(1) == 1 and 2 * packed.shape[1] == inputs, (x.shape, packed.shape)
    y = x.new_empty(tokens, outputs)
    exact, rows = x.element_size() == 4, _rows(tokens)
    wide = 64 if rows == MAX_ROWS else 128  # bytes of a block: 128 and as many rows as can be spill
    _four[(triton.cdiv(outputs, 16),)](
        x, packed, scales, scales if bias is None else bias, y, tokens, outputs, inputs,
        x.stride(0), scales.stride(0), scales.stride(1), GROUP=group, BIAS=bias is not None,
        BLOCK_M=rows, BLOCK_N=16, BLOCK_B=16 if exact else wide, num_warps=4,
        num_stages=2 if exact else 3,
    )  # fmt: skip
    return y


def int4_numbers(packed: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """See the reference: `[out, in]` in one pass."""
    outputs, group = _checked(packed, scales)
    inputs = 2 * packed.shape[1]
    out = torch.empty(outputs, inputs, dtype=dtype, device=packed.device)
    _turned_back[(triton.cdiv(inputs // 2, 128), triton.cdiv(outputs, 16))](
        packed, scales, out, outputs, inputs, scales.stride(0), scales.stride(1), GROUP=group,
        BLOCK_N=16, BLOCK_B=128, num_warps=4,
    )  # fmt: skip
    return out


def _checked(packed: Tensor, scales: Tensor) -> tuple[int, int]:
    """Outputs, and values of a group."""
    outputs, half = packed.shape
    group = 2 * half // len(scales)
    assert packed.is_contiguous() and packed.dtype == torch.uint8, (packed.stride(), packed.dtype)
    assert scales.shape[1:] == (outputs, 2) and scales.stride(2) == 1, scales.shape
    assert group in (32, 64, 128), group
    return outputs, group
