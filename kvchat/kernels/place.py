"""What stands between a layer's projections and its attention, in one launch: norms of queries and
keys, rotation, whatever scales queries, and the new entries written into the tail."""

import torch
import triton
import triton.language as tl
from torch import Tensor

NORMS = {"": 0, "head": 1, "all": 2}  # no norm, one of each head, one over all heads together


@triton.jit
def _over(row, weight, eps, offset, d, inside, wide, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """`wide`, the values at `offset + d` of a row of SIZE, over the row's root mean square."""
    i = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for a in range(0, SIZE, BLOCK):
        part = tl.load(row + a + i, mask=a + i < SIZE, other=0.0).to(tl.float32)
        total += part * part
    gain = tl.load(weight + offset + d, mask=inside, other=0.0).to(tl.float32)
    return wide * tl.rsqrt(tl.sum(total, 0) / SIZE + eps) * gain


@triton.jit
def _place(
    joined, q_weight, k_weight, cos, sin, factors, raised, q, keys, values, place, eps,
    width, store_head, store_row,
    H: tl.constexpr, G: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr,
    FACTORS: tl.constexpr, RAISED: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One head of one token: a query's, a key's or a value's."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    d = tl.arange(0, BLOCK_D)
    inside = d < HALF
    row = joined + token * width
    kind: tl.constexpr = q.dtype.element_ty
    size: tl.constexpr = 2 * HALF
    first = tl.load(row + head * size + d, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(row + head * size + HALF + d, mask=inside, other=0.0).to(tl.float32)
    at = tl.load(place).to(tl.int64) + token
    if head >= H * G + H:
        to = values + (head - H * G - H).to(tl.int64) * store_head + at * store_row + d
        tl.store(to, first.to(kind), mask=inside)
        tl.store(to + HALF, second.to(kind), mask=inside)
    else:
        if NORM == 1:
            if head < H * G:
                gain = tl.load(q_weight + d, mask=inside, other=0.0).to(tl.float32)
                other = tl.load(q_weight + HALF + d, mask=inside, other=0.0).to(tl.float32)
            else:
                gain = tl.load(k_weight + d, mask=inside, other=0.0).to(tl.float32)
                other = tl.load(k_weight + HALF + d, mask=inside, other=0.0).to(tl.float32)
            scale = tl.rsqrt(tl.sum(first * first + second * second, 0) / size + eps)
            first *= scale * gain
            second *= scale * other
        if NORM == 2:
            if head < H * G:
                a = head * size
                first = _over(row, q_weight, eps, a, d, inside, first, H * G * size, BLOCK)
                second = _over(row, q_weight, eps, a + HALF, d, inside, second, H * G * size, BLOCK)
            else:
                a, own = (head - H * G) * size, row + H * G * size
                first = _over(own, k_weight, eps, a, d, inside, first, H * size, BLOCK)
                second = _over(own, k_weight, eps, a + HALF, d, inside, second, H * size, BLOCK)
        c = tl.load(cos + token * HALF + d, mask=inside, other=0.0)
        s = tl.load(sin + token * HALF + d, mask=inside, other=0.0)
        lower, upper = first * c - second * s, second * c + first * s
        if head < H * G:
            if FACTORS:
                lower *= tl.load(factors + d, mask=inside, other=0.0)
                upper *= tl.load(factors + HALF + d, mask=inside, other=0.0)
            if RAISED:
                lower *= tl.load(raised + token)
                upper *= tl.load(raised + token)
            to = q + (token * H * G + head) * size + d
            tl.store(to, lower.to(kind), mask=inside)
            tl.store(to + HALF, upper.to(kind), mask=inside)
        else:
            to = keys + (head - H * G).to(tl.int64) * store_head + at * store_row + d
            tl.store(to, lower.to(kind), mask=inside)
            tl.store(to + HALF, upper.to(kind), mask=inside)


def place_entries(
    joined: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    place: Tensor,
    norms: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0,
    factors: Tensor | None = None,
    raised: Tensor | None = None,
) -> Tensor:
    """See the reference: `joined [T, (H*G + 2H) * D]` to queries `[T, H*G, D]`."""
    heads, _, dim = keys.shape
    tokens, width = joined.shape
    every = width // dim
    group = every // heads - 2
    assert (heads * group + 2 * heads) * dim == width and joined.stride(1) == 1, joined.shape
    assert keys.stride() == values.stride() and keys.stride(2) == 1, keys.stride()
    assert keys.dtype == values.dtype == joined.dtype, (keys.dtype, joined.dtype)
    assert cos.shape == sin.shape == (tokens, dim // 2) and cos.dtype == torch.float32, cos.shape
    assert cos.is_contiguous() and sin.is_contiguous(), "rotations are contiguous"
    assert factors is None or (factors.shape == (dim,) and factors.dtype == torch.float32)
    by_head = norms is not None and norms[0].shape == (dim,) == norms[1].shape
    norm = "" if norms is None else "head" if by_head else "all"
    weights = (cos, cos) if norms is None else norms  # what is not there is not read
    q = joined.new_empty(tokens, heads * group, dim)
    if tokens:
        _place[(tokens, every)](
            joined, *weights, cos, sin, cos if factors is None else factors,
            cos if raised is None else raised, q, keys, values, place, eps,
            joined.stride(0), keys.stride(0), keys.stride(1),
            H=heads, G=group, HALF=dim // 2, NORM=NORMS[norm], FACTORS=factors is not None,
            RAISED=raised is not None, BLOCK_D=max(16, triton.next_power_of_2(dim // 2)),
            BLOCK=1024, num_warps=1,
        )  # fmt: skip
    return q
