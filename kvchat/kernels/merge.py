"""Weighted sums of runs of entries, attention over entry sets joined."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _runs(entries, weight, begin, length, out, runs, D: tl.constexpr, BLOCK_S: tl.constexpr,
          BLOCK_D: tl.constexpr):  # fmt: skip
    """BLOCK_S runs side by side, member after member."""
    s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    d = tl.arange(0, BLOCK_D)
    here = s < runs
    first = tl.load(begin + s, mask=here, other=0).to(tl.int64)
    count = tl.load(length + s, mask=here, other=0)
    acc = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    for i in range(0, tl.max(count, 0)):
        live = i < count
        share = tl.load(weight + first + i, mask=live, other=0.0)
        inside = live[:, None] & (d < D)[None, :]
        at = (first + i)[:, None] * D + d[None, :]
        acc += tl.load(entries + at, mask=inside, other=0.0).to(tl.float32) * share[:, None]
    inside = here[:, None] & (d < D)[None, :]
    at = s.to(tl.int64)[:, None] * D + d[None, :]
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=inside)


def merge_entries(entries: Tensor, weight: Tensor, lengths: Tensor) -> Tensor:
    """See the reference: `entries [n, D]` in runs of `lengths [S]` (int64) to `[S, D]`."""
    assert entries.is_contiguous() and weight.is_contiguous() and lengths.is_contiguous()
    assert weight.dtype == torch.float32 and lengths.dtype == torch.int64
    out = entries.new_empty(len(lengths), entries.shape[1])
    if len(lengths):
        _runs[(triton.cdiv(len(lengths), 16),)](
            entries, weight, lengths.cumsum(0) - lengths, lengths, out, len(lengths),
            D=entries.shape[1], BLOCK_S=16, BLOCK_D=triton.next_power_of_2(entries.shape[1]),
            num_warps=4,
        )  # fmt: skip
    return out


@triton.jit
def _combine(parts, o, lse, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """One query of all parts."""
    at = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    top = tl.load(parts[0][1] + at)
    for p in tl.static_range(1, len(parts)):
        top = tl.maximum(top, tl.load(parts[p][1] + at))
    base = tl.where(top == float("-inf"), 0.0, top)
    acc = tl.zeros([BLOCK_D], tl.float32)
    total = base * 0.0
    for p in tl.static_range(len(parts)):
        share = tl.exp(tl.load(parts[p][1] + at) - base)
        acc += share * tl.load(parts[p][0] + at * D + d, mask=d < D, other=0.0).to(tl.float32)
        total += share
    tl.store(o + at * D + d, acc / tl.where(total > 0, total, 1.0), mask=d < D)
    tl.store(
        lse + at, tl.where(total > 0, base + tl.log(tl.where(total > 0, total, 1.0)), float("-inf"))
    )


def combine(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """See the reference: `(o [T, H*G, D], lse [T, H*G])` of entry sets to those of their union."""
    if len(parts) == 1:
        return parts[0][0].float(), parts[0][1]
    dense = tuple((o.contiguous(), lse.contiguous()) for o, lse in parts)
    o = torch.empty_like(dense[0][0], dtype=torch.float32)
    lse = torch.empty_like(dense[0][1])
    if lse.numel():
        wide = triton.next_power_of_2(o.shape[-1])
        _combine[(lse.numel(),)](dense, o, lse, D=o.shape[-1], BLOCK_D=wide, num_warps=1)
    return o, lse
