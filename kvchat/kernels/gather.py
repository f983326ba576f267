"""Chosen entries copied out of a pool, which may be pinned memory of the host.

The kernel itself reads over the bus: a few dozen programs with some kilobytes each under way hide
its latency, and the host does nothing per token.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _gather(pool, ids, out, count, pool_head, SIZE: tl.constexpr, BLOCK_R: tl.constexpr,
            BLOCK_D: tl.constexpr):  # fmt: skip
    """BLOCK_R entries of one head."""
    head = tl.program_id(1).to(tl.int64)
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    entry = tl.load(ids + head * count + r, mask=r < count, other=-1).to(tl.int64)
    inside = (entry >= 0)[:, None] & (d < SIZE)[None, :]
    at = head * pool_head + entry[:, None] * SIZE + d[None, :]
    entries = tl.load(pool + at, mask=inside, other=0.0)
    to = (head * count + r)[:, None] * SIZE + d[None, :]
    tl.store(out + to, entries, mask=(r < count)[:, None] & (d < SIZE)[None, :])


def gather_entries(pool: Tensor, ids: Tensor) -> Tensor:
    """See the reference: entries `ids [H, k]` (int32) of `pool [H, capacity, ...]`, on `ids`'
    device.

    Pageable host memory is refused: a card cannot read it.
    """
    heads, count = ids.shape
    assert pool.device == ids.device or pool.is_pinned(), "the pool must be pinned host memory"
    assert ids.is_contiguous() and ids.dtype == torch.int32, (ids.stride(), ids.dtype)
    assert pool.shape[0] == heads and pool[0].is_contiguous(), (pool.shape, pool.stride())
    size = pool[0, 0].numel()
    out = torch.empty((heads, count, *pool.shape[2:]), dtype=pool.dtype, device=ids.device)
    if ids.numel():
        wide = triton.next_power_of_2(size)
        _gather[(triton.cdiv(count, 8), heads)](
            pool, ids, out, count, pool.stride(0), SIZE=size, BLOCK_R=8, BLOCK_D=wide, num_warps=4
        )
    return out
