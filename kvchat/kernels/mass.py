"""Attention mass per key from queries whose log-sum-exp is known, without a matrix of both.

A program owns a block of keys and walks over all queries, so nothing is summed by atomics and the
result is the same every time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _mass(
    q, k, lse, seen, out, scale, factor, window, entries, q_token, q_head, k_head, k_row,
    SHARE: tl.constexpr, G: tl.constexpr, D: tl.constexpr, POWER: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Keys of block `program_id(0)` for unit `program_id(1)`: SHARE query heads together."""
    unit = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    live = n < entries
    at = (unit * SHARE // G).to(tl.int64) * k_head + n.to(tl.int64) * k_row
    inside = live[:, None] & (d < D)[None, :]
    keys = tl.trans(tl.load(k + at[:, None] + d[None, :], mask=inside, other=0.0))
    acc = tl.zeros([BLOCK_N], tl.float32)
    for a in range(0, window * SHARE, BLOCK_M):
        m = a + tl.arange(0, BLOCK_M)
        asked = m < window * SHARE
        query = m // SHARE
        head = unit * SHARE + m % SHARE
        where = query.to(tl.int64) * q_token + head * q_head
        known = asked[:, None] & (d < D)[None, :]
        queries = tl.load(q + where[:, None] + d[None, :], mask=known, other=0.0)
        total = tl.load(lse + query * (tl.num_programs(1) * SHARE) + head, mask=asked, other=0.0)
        last = tl.load(seen + query, mask=asked, other=0)
        logits = tl.dot(queries, keys, input_precision="ieee") * scale
        mass = tl.exp(POWER * (logits - total[:, None]))
        mass = tl.where(n[None, :] < last[:, None], mass, 0.0)
        acc += tl.sum(mass, 0)
    tl.store(out + unit.to(tl.int64) * entries + n, acc * factor, mask=live)


def column_mass(
    q: Tensor, k: Tensor, lse: Tensor, seen: Tensor, scale: float, power: int = 1
) -> Tensor:
    """See the reference: `[H*G, N]`, the sum over all queries."""
    return _launch(q, k, lse, seen, scale, power, q.shape[1], 1.0)


def window_mass(q: Tensor, k: Tensor, lse: Tensor, seen: Tensor, scale: float) -> Tensor:
    """See the reference: `[H, N]`, the mean over queries and over the heads of a group.

    A group's heads share one load of the keys.
    """
    mean = 1 / (q.shape[0] * q.shape[1] // k.shape[0])
    return _launch(q, k, lse, seen, scale, 1, k.shape[0], mean)


def _launch(
    q: Tensor, k: Tensor, lse: Tensor, seen: Tensor, scale: float, power: int, units: int,
    factor: float
) -> Tensor:  # fmt: skip
    window, query_heads, dim = q.shape
    heads, entries, _ = k.shape
    assert q.stride(2) == k.stride(2) == 1, (q.stride(), k.stride())
    assert q.dtype == k.dtype and lse.dtype == torch.float32, (q.dtype, k.dtype, lse.dtype)
    assert dim <= 256, dim
    lse = lse.contiguous()  # a window of it may be a slice of heads
    out = k.new_empty(units, entries, dtype=torch.float32)
    wide = max(16, triton.next_power_of_2(dim))
    exact = q.element_size() == 4  # products without tensor cores: larger blocks spill
    few = window * query_heads // units <= 16
    block_m = 16 if few or exact else 32 if wide == 256 else 64
    block_n = 32 if exact else 64
    if entries:
        _mass[(triton.cdiv(entries, block_n), units)](
            q, k, lse, seen, out, scale, factor, window, entries,
            q.stride(0), q.stride(1), k.stride(0), k.stride(1),
            SHARE=query_heads // units, G=query_heads // heads, D=dim, POWER=power,
            BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_D=wide, num_warps=4, num_stages=2,
        )  # fmt: skip
    return out
