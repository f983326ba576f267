"""Product quantization: nearest centroids, look-up scores, and the best entries by a threshold.

PQCache (arXiv 2407.12820). Selecting counts instead of sorting: three passes over the bits of the
scores find the last one that is taken, a fourth writes the entries down in order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _assign(
    x, centroids, codes, entries, x_head, x_row, M: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """BLOCK_N entries of one sub-space of one head; D is the sub-space's size."""
    head, part = tl.program_id(1) // M, tl.program_id(1) % M
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    inside = (n < entries)[:, None] & (d < D)[None, :]
    at = head.to(tl.int64) * x_head + n.to(tl.int64)[:, None] * x_row + part * D + d[None, :]
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    best = tl.full([BLOCK_N], float("-inf"), tl.float32)
    code = tl.zeros([BLOCK_N], tl.int32)
    for a in range(0, C, BLOCK_C):
        c = a + tl.arange(0, BLOCK_C)
        known = (c < C)[:, None] & (d < D)[None, :]
        where = (tl.program_id(1) * C + c)[:, None] * D + d[None, :]
        table = tl.load(centroids + where, mask=known, other=0.0).to(tl.float32)
        score = tl.dot(values, tl.trans(table), input_precision="ieee")
        score -= tl.sum(table * table, 1)[None, :] / 2
        score = tl.where((c < C)[None, :], score, float("-inf"))
        top, first = tl.max(score, 1, return_indices=True)
        code = tl.where(top > best, a + first, code)
        best = tl.maximum(best, top)
    at = (head.to(tl.int64) * entries + n) * M + part
    tl.store(codes + at, code.to(tl.uint8), mask=n < entries)


def pq_assign(x: Tensor, centroids: Tensor) -> Tensor:
    """See the reference: `x [H, N, D]` to codes `[H, N, m]` (uint8)."""
    heads, entries, dim = x.shape
    _, parts, count, size = centroids.shape
    assert parts * size == dim and count <= 256 and x.stride(2) == 1, (x.shape, centroids.shape)
    codes = torch.empty(heads, entries, parts, dtype=torch.uint8, device=x.device)
    if entries:  # larger blocks spill: exact products have no tensor cores to go to
        _assign[(triton.cdiv(entries, 32), heads * parts)](
            x, centroids.contiguous(), codes, entries, x.stride(0), x.stride(1), M=parts, C=count,
            D=size, BLOCK_N=32, BLOCK_C=min(32, max(16, triton.next_power_of_2(count))),
            BLOCK_D=max(16, triton.next_power_of_2(size)), num_warps=4, num_stages=1,
        )  # fmt: skip
    return codes


@triton.jit
def _score(
    table, codes, out, entries, parts, code_head, code_row, code_part, C: tl.constexpr,
    G: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr
):  # fmt: skip
    """BLOCK_N entries of one head, for all queries of its group."""
    head = tl.program_id(1).to(tl.int64)
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    g = tl.arange(0, BLOCK_G)
    live = n < entries
    inside = live[:, None] & (g < G)[None, :]
    own = table + (head * G + g)[None, :] * parts * C
    acc = tl.zeros([BLOCK_N, BLOCK_G], tl.float32)
    for j in range(parts):
        at = head * code_head + n * code_row + j * code_part
        code = tl.load(codes + at, mask=live, other=0).to(tl.int32)
        acc += tl.load(own + j * C + code[:, None], mask=inside, other=0.0)
    tl.store(out + (head * G + g)[None, :] * entries + n[:, None], acc, mask=inside)


def pq_score(table: Tensor, codes: Tensor) -> Tensor:
    """See the reference: `table [H, G, m, C]`, codes `[H, N, m]` to logits `[H, G, N]`."""
    heads, group, parts, count = table.shape
    entries = codes.shape[1]
    assert table.dtype == torch.float32, table.dtype
    assert codes.dtype == torch.uint8 and codes.shape[2] == parts, (codes.dtype, codes.shape)
    out = table.new_empty(heads, group, entries)
    if entries:
        _score[(triton.cdiv(entries, 256), heads)](
            table.contiguous(), codes, out, entries, parts, *codes.stride(), C=count, G=group,
            BLOCK_N=256, BLOCK_G=triton.next_power_of_2(group), num_warps=4,
        )  # fmt: skip
    return out


@triton.jit
def _ordered(worth, at, live):
    """fp32 as numbers without a sign that order alike; what is not there is the smallest."""
    value = tl.load(worth + at, mask=live, other=0.0)
    bits = tl.where(value == 0.0, 0.0, value).to(tl.uint32, bitcast=True)
    negative = bits >> 31
    return tl.where(negative == 1, ~bits, bits | 0x80000000)


@triton.jit
def _digit(
    worth, entries, prefix, need, SHIFT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """WIDTH more bits of the last key that is taken, and how many are still needed below it."""
    i = tl.arange(0, BLOCK)
    found = tl.zeros([1 << WIDTH], tl.int32)
    for a in range(0, entries, BLOCK):
        live = a + i < entries
        key = _ordered(worth, a + i, live)
        if SHIFT + WIDTH < 32:  # only keys that begin like it
            live = live & ((key >> (SHIFT + WIDTH)) == prefix)
        digit = ((key >> SHIFT) & ((1 << WIDTH) - 1)).to(tl.int32)
        found += tl.histogram(digit, 1 << WIDTH, mask=live)
    higher = tl.sum(found, 0) - tl.cumsum(found, 0)
    last = (higher < need) & (higher + found >= need)  # one bin
    need -= tl.sum(tl.where(last, higher, 0), 0)
    bin = tl.sum(tl.where(last, tl.arange(0, 1 << WIDTH), 0), 0)
    return (prefix << WIDTH) | bin.to(tl.uint32), need


@triton.jit
def _select(worth, out, entries, count, BLOCK: tl.constexpr):
    """One head."""
    head = tl.program_id(0).to(tl.int64)
    worth += head * entries
    out += head * count
    i = tl.arange(0, BLOCK)
    prefix = tl.program_id(0).to(tl.uint32) * 0
    prefix, need = _digit(worth, entries, prefix, count, 21, 11, BLOCK)
    prefix, need = _digit(worth, entries, prefix, need, 10, 11, BLOCK)
    prefix, need = _digit(worth, entries, prefix, need, 0, 10, BLOCK)
    written = need * 0
    equals = need * 0
    for a in range(0, entries, BLOCK):
        live = a + i < entries
        key = _ordered(worth, a + i, live)
        equal = live & (key == prefix)
        order = equals + tl.cumsum(equal.to(tl.int32), 0)
        taken = (live & (key > prefix)) | (equal & (order <= need))
        to = written + tl.cumsum(taken.to(tl.int32), 0) - 1
        tl.store(out + to, a + i, mask=taken)
        written += tl.sum(taken.to(tl.int32), 0)
        equals += tl.sum(equal.to(tl.int32), 0)


def pq_select(worth: Tensor, count: int) -> Tensor:
    """See the reference: the `count` best of `worth [H, N]`, `[H, count]` int32, ascending."""
    heads, entries = worth.shape
    assert worth.dtype == torch.float32, worth.dtype
    count = min(count, entries)
    out = torch.empty(heads, count, dtype=torch.int32, device=worth.device)
    if count:
        _select[(heads,)](worth.contiguous(), out, entries, count, BLOCK=2048, num_warps=8)
    return out
