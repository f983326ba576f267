"""Product quantization: nearest centroids, look-up scores, and the best entries by a threshold.

PQCache (arXiv 2407.12820). Selecting counts instead of sorting (radix select): three passes over
the bits of the scores find the last one that is taken, a fourth counts what every program will
write, a fifth writes the entries down in order. Programs share the entries of a head.
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
def _digit(counts, prefix, need, WIDTH: tl.constexpr):
    """WIDTH more bits of the last key that is taken, by the `counts` of keys that begin with
    `prefix`, and how many keys are still needed below it."""
    digit = tl.arange(0, 1 << WIDTH)
    found = tl.load(counts + digit)
    higher = tl.sum(found, 0) - tl.cumsum(found, 0)
    last = (higher < need) & (higher + found >= need)  # one digit
    need -= tl.sum(tl.where(last, higher, 0), 0)
    chosen = tl.sum(tl.where(last, digit, 0), 0)
    return (prefix << WIDTH) | chosen.to(tl.uint32), need


@triton.jit
def _bound(counts, need, PASS: tl.constexpr):
    """What PASS passes have found out of a head's last key: its first bits, and what is needed."""
    prefix = (need * 0).to(tl.uint32)
    if PASS > 0:
        prefix, need = _digit(counts, prefix, need, 11)
    if PASS > 1:
        prefix, need = _digit(counts + 2048, prefix, need, 11)
    if PASS > 2:
        prefix, need = _digit(counts + 4096, prefix, need, 10)
    return prefix, need


@triton.jit
def _count(
    worth, counts, entries, count, PASS: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr
):  # fmt: skip
    """The digits of BLOCK keys of one head, of those that begin like the last one."""
    head = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = i < entries
    key = _ordered(worth + head * entries, i, live)
    counts += head * 3 * 2048
    prefix, _ = _bound(counts, count, PASS)
    if PASS > 0:
        live = live & ((key >> (SHIFT + WIDTH)) == prefix)
    digit = ((key >> SHIFT) & ((1 << WIDTH) - 1)).to(tl.int32)
    found = tl.histogram(digit, 1 << WIDTH, mask=live)
    at = counts + PASS * 2048 + tl.arange(0, 1 << WIDTH)
    tl.atomic_add(at, found, mask=found > 0)  # whole numbers: the order does not matter


@triton.jit
def _taken(worth, entries, key, BLOCK: tl.constexpr):
    """Of BLOCK keys of one head: which lie above the last one, and which equal it."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = i < entries
    own = _ordered(worth, i, live)
    return live & (own > key), live & (own == key)


@triton.jit
def _tally(worth, counts, sums, entries, count, BLOCK: tl.constexpr):
    """How many keys of a block lie above the last one, and how many equal it."""
    head = tl.program_id(1).to(tl.int64)
    key, _ = _bound(counts + head * 3 * 2048, count, 3)
    above, equal = _taken(worth + head * entries, entries, key, BLOCK)
    to = sums + (head * tl.num_programs(0) + tl.program_id(0)) * 2
    tl.store(to, tl.sum(above.to(tl.int32), 0))
    tl.store(to + 1, tl.sum(equal.to(tl.int32), 0))


@triton.jit
def _select(
    worth, counts, sums, out, entries, count, BLOCK: tl.constexpr, BLOCKS: tl.constexpr
):  # fmt: skip
    """A block's part of one head, behind the parts of the blocks before."""
    head = tl.program_id(1).to(tl.int64)
    key, need = _bound(counts + head * 3 * 2048, count, 3)
    above, equal = _taken(worth + head * entries, entries, key, BLOCK)
    block = tl.arange(0, BLOCKS)
    before = block < tl.program_id(0)
    at = sums + (head * tl.num_programs(0) + block) * 2
    higher = tl.sum(tl.load(at, mask=before, other=0), 0)
    equals = tl.sum(tl.load(at + 1, mask=before, other=0), 0)
    order = equals + tl.cumsum(equal.to(tl.int32), 0)
    taken = above | (equal & (order <= need))
    to = higher + tl.minimum(equals, need) + tl.cumsum(taken.to(tl.int32), 0) - 1
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + head * count + to, i, mask=taken)


def pq_select(worth: Tensor, count: int) -> Tensor:
    """See the reference: the `count` best of `worth [H, N]`, `[H, count]` int32, ascending."""
    heads, entries = worth.shape
    assert worth.dtype == torch.float32, worth.dtype
    count = min(count, entries)
    out = torch.empty(heads, count, dtype=torch.int32, device=worth.device)
    if count == 0:
        return out
    worth, block = worth.contiguous(), 4096
    blocks = triton.cdiv(entries, block)
    counts = torch.zeros(heads, 3, 2048, dtype=torch.int32, device=worth.device)
    sums = torch.empty(heads, blocks, 2, dtype=torch.int32, device=worth.device)
    size, how = (entries, count), {"BLOCK": block, "num_warps": 8}
    for number, (shift, width) in enumerate(((21, 11), (10, 11), (0, 10))):
        _count[(blocks, heads)](worth, counts, *size, number, shift, width, **how)
    _tally[(blocks, heads)](worth, counts, sums, *size, **how)
    wide = triton.next_power_of_2(blocks)
    _select[(blocks, heads)](worth, counts, sums, out, *size, BLOCKS=wide, **how)
    return out
