"""What a token attends to of entries that are listed by their codes: ranked, found and copied in
two launches, without a word of the host (PQCache, arXiv 2407.12820)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

AGGREGATES = {"softmax_sum": 0, "max": 1, "logit_sum": 2}
MAX_CELLS = 4096  # that one program holds


@triton.jit
def _products(q, centroids, table, scale, M: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
              G: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Products of one head's queries and centroids into `table [G, M, C]`; D is a part's size."""
    d = tl.arange(0, BLOCK_D)
    for j in range(M):
        for a in range(0, C, BLOCK_C):
            c = a + tl.arange(0, BLOCK_C)
            inside = (c < C)[:, None] & (d < D)[None, :]
            at = (j * C + c)[:, None] * D + d[None, :]
            part = tl.load(centroids + at, mask=inside, other=0.0).to(tl.float32)
            for g in range(G):
                own = tl.load(q + (g * M + j) * D + d, mask=d < D, other=0.0).to(tl.float32)
                tl.store(table + (g * M + j) * C + c, tl.sum(part * own[None, :], 1) * scale,
                         mask=c < C)  # fmt: skip


@triton.jit
def _rank(
    q, centroids, count, table, ends, state, scale, wanted, heads,
    M: tl.constexpr, C: tl.constexpr, D: tl.constexpr, G: tl.constexpr, CELLS: tl.constexpr,
    AGGREGATE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """One head: its cells, by what their entries are worth."""
    head = tl.program_id(0).to(tl.int64)
    table += head * G * M * C
    _products(q + head * G * M * D, centroids + head * M * C * D, table, scale, M, C, D, G,
              BLOCK_C, BLOCK_D)  # fmt: skip
    tl.debug_barrier()  # the table is read by other threads than those that wrote it
    cell = tl.arange(0, BLOCK)
    known = cell < CELLS
    size = tl.load(count + head * CELLS + cell, mask=known, other=0.0).to(tl.int32)
    there = size > 0
    worth = tl.zeros([BLOCK], tl.float32)
    for g in range(G):
        logits = tl.zeros([BLOCK], tl.float32)
        rest = cell
        for i in tl.static_range(M):
            at = (g * M + M - 1 - i) * C + rest % C
            logits += tl.load(table + at, mask=known, other=0.0)
            rest = rest // C
        if AGGREGATE == 2:
            worth += logits
        else:
            seen = tl.where(there, logits, float("-inf"))
            share = tl.exp(seen - tl.max(seen, 0))
            share = share / tl.sum(share * size.to(tl.float32), 0)
            worth = worth + share if AGGREGATE == 0 else tl.maximum(worth, share)
    # as numbers without a sign that order alike; what is not there is the smallest
    bits = tl.where(worth == 0.0, 0.0, worth).to(tl.uint32, bitcast=True)
    key = tl.where(there, tl.where(bits >> 31 == 1, ~bits, bits | 0x80000000), 0)
    bound = (tl.program_id(0) * 0).to(tl.uint32)
    bit = bound + 0x80000000
    for _ in range(32):  # the largest bound above which there are enough
        more = bound | bit
        enough = tl.sum(tl.where(key >= more, size, 0), 0) >= wanted
        bound = tl.where(enough, more, bound)
        bit = bit >> 1
    sure = key > bound
    missing = wanted - tl.sum(tl.where(sure, size, 0), 0)
    edge = tl.where(there & (key == bound), size, 0)
    before = tl.cumsum(edge, 0) - edge
    taken = tl.where(sure, size, tl.minimum(tl.maximum(missing - before, 0), edge))
    tl.store(ends + head * CELLS + cell, tl.cumsum(taken, 0), mask=known)
    gained = tl.sum(tl.where(taken > 0, taken.to(tl.float32) * worth, 0.0), 0)
    tl.store(state + head, tl.load(state + head) + gained)
    if head == 0:
        tl.store(state + heads, tl.load(state + heads) + 1.0)


def pq_rank(
    q: Tensor,
    centroids: Tensor,
    count: Tensor,
    wanted: int,
    scale: float,
    aggregate: str,
    state: Tensor,
) -> Tensor:
    """See the reference: `q [H*G, D]` of one token to the ends `[H, C^m]` of what it takes."""
    heads, parts, size, dim = centroids.shape
    cells = count.shape[1]
    group = len(q) // heads
    assert cells == size**parts <= MAX_CELLS and q.is_contiguous(), (cells, q.stride())
    assert centroids.is_contiguous() and count.is_contiguous() and count.dtype == torch.float32
    ends = torch.empty(heads, cells, dtype=torch.int32, device=q.device)
    table = torch.empty(heads, group, parts, size, dtype=torch.float32, device=q.device)
    wide = triton.next_power_of_2(dim)
    _rank[(heads,)](
        q, centroids, count, table, ends, state, scale, wanted, heads, M=parts, C=size, D=dim,
        G=group, CELLS=cells, AGGREGATE=AGGREGATES[aggregate], BLOCK=triton.next_power_of_2(cells),
        BLOCK_C=min(triton.next_power_of_2(size), max(1, 4096 // wide)), BLOCK_D=wide, num_warps=8,
    )  # fmt: skip
    return ends


@triton.jit
def _fetch(
    pool, late_k, late_v, offset, order, ends, out, sinks, total, entries, listed,
    pool_head, late_head, late_row, CELLS: tl.constexpr, STEPS: tl.constexpr, D: tl.constexpr,
    LISTED: tl.constexpr, LATE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """BLOCK_R entries of one head: keys and values side by side."""
    head = tl.program_id(1).to(tl.int64)
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    chosen = (r >= sinks) & (r < total)
    slot = r - sinks
    if LISTED:
        ends += head * CELLS
        cell = tl.zeros([BLOCK_R], tl.int32)  # cells that end before the slot
        for i in tl.static_range(STEPS):
            probe = cell + (1 << (STEPS - 1 - i)) - 1
            end = tl.load(ends + probe, mask=chosen & (probe < CELLS), other=2147483647)
            cell = tl.where(end <= slot, probe + 1, cell)
        begin = tl.load(ends + cell - 1, mask=chosen & (cell > 0), other=0)
        first = tl.load(offset + head * (CELLS + 1) + cell, mask=chosen, other=0)
        slot += first - begin
    found = tl.load(order + head * listed + slot, mask=chosen, other=0)
    entry = tl.where(chosen, found + sinks, r).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    live = (r < total)[:, None] & (d < 2 * D)[None, :]
    inside = live & (entry < entries)[:, None]
    at = pool + head * pool_head + entry[:, None] * (2 * D) + d[None, :]
    values = tl.load(at, mask=inside, other=0.0)
    if LATE:
        beyond = live & (entry >= entries)[:, None]
        at = head * late_head + (entry - entries)[:, None] * late_row + d[None, :]
        values += tl.load(late_k + at, mask=beyond & (d < D)[None, :], other=0.0)
        values += tl.load(late_v + at - D, mask=beyond & (d >= D)[None, :], other=0.0)
    to = (head * total + r)[:, None] * (2 * D) + d[None, :]
    tl.store(out + to, values, mask=live)


def pq_fetch(
    pool: Tensor,
    late: tuple[Tensor, Tensor],
    order: Tensor,
    sinks: int,
    wanted: int,
    offset: Tensor | None = None,
    ends: Tensor | None = None,
) -> Tensor:
    """See the reference: `[H, sinks + wanted, 2D]` where the list is.

    The pool may be pinned memory of the host: a few dozen programs with some kilobytes each under
    way hide the bus's latency.
    """
    heads, entries, width = pool.shape
    listed = offset is not None and ends is not None
    first, last = (offset, ends) if offset is not None and ends is not None else (order, order)
    cells, total = last.shape[1], sinks + wanted
    keys, values = late
    assert pool.device == order.device or pool.is_pinned(), "the pool must be pinned host memory"
    assert pool.stride()[1:] == (width, 1) and order.is_contiguous() and first.is_contiguous()
    assert keys.stride() == values.stride() and keys.stride(2) == 1, keys.stride()
    assert first.dtype == order.dtype == last.dtype == torch.int32, (first.dtype, order.dtype)
    out = torch.empty(heads, total, width, dtype=pool.dtype, device=order.device)
    _fetch[(triton.cdiv(total, 8), heads)](
        pool, keys, values, first, order, last, out, sinks, total, entries, order.shape[1],
        pool.stride(0), keys.stride(0), keys.stride(1), CELLS=cells if listed else 1,
        STEPS=max(1, triton.next_power_of_2(cells).bit_length() - 1) if listed else 1,
        D=width // 2, LISTED=listed, LATE=keys.shape[1] > 0, BLOCK_R=8,
        BLOCK_D=triton.next_power_of_2(width), num_warps=4,
    )  # fmt: skip
    return out
