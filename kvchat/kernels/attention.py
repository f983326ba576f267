"""Attention over ragged entries: the keys are split among programs, their answers are combined.

Flash-decoding's split (arXiv 2311.01282) over several entry sets in one launch. A program takes at
most `each` entries of one head of one set, so a long head is spread over the chip and a short one
costs one program. Lengths are read on the device: nobody waits for it, and a captured launch stays
right while entries are added.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvchat.kernels.entries import Entries
from kvchat.kernels.loading import PACKED_ROWS, load_keys, load_values
from kvchat.kernels.tiles import capability, processors, tiles

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LEAST_EACH = 256  # entries; below it a program's fixed costs are larger than its reading
MAX_GROUP, MAX_DIM = 16, 256


@triton.jit
def _chunks(parts, head, each):
    """How many programs share the entries of `head` (one number or a vector), over all sets."""
    count = head * 0
    for p in tl.static_range(len(parts)):
        count += tl.cdiv(tl.load(parts[p][3] + head, mask=head >= 0, other=0), each)
    return count


@triton.jit
def _owner(parts, number, each, kv_heads, BLOCK_H: tl.constexpr):
    """The head of chunk `number` (`kv_heads` if there is none) and the first chunk of that head."""
    heads = tl.arange(0, BLOCK_H)
    known = heads < kv_heads
    counts = tl.where(known, _chunks(parts, tl.where(known, heads, -1), each), 0)
    ends = tl.cumsum(counts)
    head = tl.sum(tl.where(known, ends <= number, 0).to(tl.int32))
    return head, tl.sum(tl.where(heads < head, counts, 0))


@triton.jit
def _fold(
    acc, best, total, queries, last, part, first, lo, hi, stop, scale,
    MASKED: tl.constexpr, BITS: tl.constexpr, BIAS: tl.constexpr, GROUP: tl.constexpr,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Entries `lo` to `hi` of a head join the running softmax; query m sees those to `last[m]`."""
    for a in range(lo, hi, BLOCK_N):
        entry = a + tl.arange(0, BLOCK_N)
        live = entry < stop
        at = first + entry.to(tl.int64)
        k = load_keys(part, at, live, BITS, D, BLOCK_N, BLOCK_D, queries.dtype)
        logits = tl.dot(queries, tl.trans(k), input_precision="ieee") * (scale * LOG2E)
        if BIAS:
            bias = tl.load(part[4] + at, mask=live, other=0.0)
            logits += bias[None, :] * LOG2E
        if MASKED:
            seen = live[None, :] & (entry[None, :] <= last[:, None])
            logits = tl.where(seen, logits, float("-inf"))
        new = tl.maximum(best, tl.max(logits, 1))
        base = tl.where(new == float("-inf"), 0.0, new)  # no entry yet: 2^(-inf - 0) is 0, not NaN
        weights = tl.exp2(logits - base[:, None])
        shrink = tl.exp2(best - base)
        v = load_values(part, at, live, BITS, D, BLOCK_N, BLOCK_D, GROUP, queries.dtype)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        total = total * shrink + tl.sum(weights, 1)
        best = new
    return acc, best, total


@triton.jit(do_not_specialize=["kv_heads"])
def _attend(
    q, parts, partial, partial_lse, scale, tokens, each, kv_heads, q_token, q_head,
    BITS: tl.constexpr, BIAS: tl.constexpr, CAUSAL: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr
):  # fmt: skip
    """Chunk `program_id(0)` for a block of the `tokens * G` queries of its head."""
    number = tl.program_id(0)
    head, chunk = _owner(parts, number, each, kv_heads, BLOCK_H)
    chunk = number - chunk
    if head < kv_heads:
        m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
        d = tl.arange(0, BLOCK_D)
        asked = m < tokens * G
        token = m // G
        where = token.to(tl.int64) * q_token + (head * G + m % G) * q_head
        inside = asked[:, None] & (d < D)[None, :]
        queries = tl.load(q + where[:, None] + d[None, :], mask=inside, other=0.0)
        newest = tl.minimum((tl.program_id(1) + 1) * BLOCK_M, tokens * G) - 1
        for p in tl.static_range(len(parts)):
            length = tl.load(parts[p][3] + head)
            share = tl.cdiv(length, each)
            if (chunk >= 0) & (chunk < share):
                entries: tl.constexpr = BLOCK_N if BITS[p] == 16 else PACKED_ROWS
                first = tl.load(parts[p][2] + head).to(tl.int64)
                lo = chunk * each
                stop = tl.minimum(lo + each, length)
                last = m * 0 + length
                hi = stop
                full = lo + (stop - lo) // entries * entries  # up to here no entry needs a mask
                if CAUSAL and p == len(parts) - 1:
                    last = length - tokens + token
                    hi = tl.minimum(stop, length - tokens + newest // G + 1)
                    oldest = length - tokens + tl.program_id(1) * BLOCK_M // G + 1
                    seen_by_all = lo + tl.maximum(oldest - lo, 0) // entries * entries
                    full = tl.minimum(full, seen_by_all)
                acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
                best = tl.full([BLOCK_M], float("-inf"), tl.float32)
                total = tl.zeros([BLOCK_M], tl.float32)
                if BLOCK_M > 16:  # products bound it, not memory: most entries go without a mask
                    acc, best, total = _fold(
                        acc, best, total, queries, last, parts[p], first, lo, full, stop, scale,
                        False, BITS[p], BIAS[p], GROUP, D, entries, BLOCK_D
                    )  # fmt: skip
                    lo = tl.maximum(lo, full)
                acc, best, total = _fold(
                    acc, best, total, queries, last, parts[p], first, lo, hi, stop, scale,
                    True, BITS[p], BIAS[p], GROUP, D, entries, BLOCK_D
                )  # fmt: skip
                some = total > 0
                o = acc / tl.where(some, total, 1.0)[:, None]
                lse = best * LN2 + tl.log(tl.where(some, total, 1.0))  # of nothing: -inf
                at = number.to(tl.int64) * tokens * G + m
                tl.store(partial + at[:, None] * D + d[None, :], o, mask=inside)
                tl.store(partial_lse + at, lse, mask=asked)
            chunk -= share


@triton.jit(do_not_specialize=["kv_heads"])
def _join(
    parts, partial, partial_lse, o, lse, tokens, each, kv_heads,
    G: tl.constexpr, D: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """BLOCK_M queries of a head: its chunks, summed by their log-sum-exps."""
    head = tl.program_id(1)
    heads = tl.arange(0, BLOCK_H)
    begin = tl.sum(
        tl.where(heads < head, _chunks(parts, tl.where(heads < head, heads, -1), each), 0)
    )
    count = _chunks(parts, head, each)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    asked = m < tokens * G
    c = tl.arange(0, BLOCK_C)
    d = tl.arange(0, BLOCK_D)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for a in range(0, count, BLOCK_C):
        at = (begin + a + c).to(tl.int64)[None, :] * tokens * G + m[:, None]
        live = asked[:, None] & (a + c < count)[None, :]
        part = tl.load(partial_lse + at, mask=live, other=float("-inf"))
        top = tl.maximum(top, tl.max(part, 1))
    base = tl.where(top == float("-inf"), 0.0, top)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for a in range(0, count, BLOCK_C):
        at = (begin + a + c).to(tl.int64)[None, :] * tokens * G + m[:, None]
        live = asked[:, None] & (a + c < count)[None, :]
        part = tl.load(partial_lse + at, mask=live, other=float("-inf"))
        weights = tl.exp(part - base[:, None])
        inside = live[:, :, None] & (d < D)[None, None, :]
        entries = tl.load(partial + at[:, :, None] * D + d[None, None, :], mask=inside, other=0.0)
        acc += tl.sum(entries * weights[:, :, None], 1)
        total += tl.sum(weights, 1)
    some = total > 0
    at = (m // G).to(tl.int64) * kv_heads * G + head * G + m % G
    inside = asked[:, None] & (d < D)[None, :]
    joined = (acc / tl.where(some, total, 1.0)[:, None]).to(o.dtype.element_ty)
    tl.store(o + at[:, None] * D + d[None, :], joined, mask=inside)
    whole = tl.where(some, base + tl.log(tl.where(some, total, 1.0)), float("-inf"))
    tl.store(lse + at, whole, mask=asked)


def ragged_attention(
    q: Tensor,
    parts: Sequence[Entries],
    scale: float,
    causal: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """See the reference: `q [T, H*G, D]` over all entry sets, `o` in `dtype`, `lse` in fp32.

    The host's `spans` bound the launch; what is read is what `start` and `length` say.
    """
    tokens, query_heads, dim = q.shape
    heads = len(parts[0].spans)
    group = query_heads // heads
    _check(q, parts, group)
    packed = [entries.packing for entries in parts if entries.packing is not None]
    size = q.element_size()
    block = tiles(tokens * group, dim, size, bool(packed), capability(q.device))
    blocks = triton.cdiv(tokens * group, block.m)
    lengths = [n for entries in parts for _, n in entries.spans]
    each = _each(sum(lengths), blocks, processors(q.device))
    chunks = sum(triton.cdiv(n, each) for n in lengths)
    partial = q.new_empty(chunks, tokens * group, dim, dtype=torch.float32)
    partial_lse = q.new_empty(chunks, tokens * group, dtype=torch.float32)
    o = q.new_empty(q.shape, dtype=dtype)
    lse = q.new_empty(q.shape[:2], dtype=torch.float32)
    stores = tuple(_store(entries) for entries in parts)
    bits = tuple(16 if entries.packing is None else entries.packing.bits for entries in parts)
    biased = tuple(entries.bias is not None for entries in parts)
    v_group = dim // packed[0].v_scale.shape[1] if packed else 1
    shape: dict[str, Any] = {
        "G": group,
        "D": dim,
        "BLOCK_H": max(16, triton.next_power_of_2(heads)),
        "BLOCK_D": max(16, triton.next_power_of_2(dim)),
    }
    if chunks:
        _attend[(chunks, blocks)](
            q, stores, partial, partial_lse, scale, tokens, each, heads, q.stride(0), q.stride(1),
            BITS=bits, BIAS=biased, CAUSAL=causal, GROUP=v_group, BLOCK_M=block.m, BLOCK_N=block.n,
            **shape, num_warps=block.warps, num_stages=block.stages,
        )  # fmt: skip
    many = 16 if tokens * group > 16 else 1  # queries of a program; else it joins many chunks
    _join[(triton.cdiv(tokens * group, many), heads)](
        stores, partial, partial_lse, o, lse, tokens, each, heads, BLOCK_M=many, BLOCK_C=16 // many,
        **shape, num_warps=2,
    )  # fmt: skip
    return o, lse


def _each(entries: int, blocks: int, processors: int) -> int:
    """Entries that a program takes, so that four programs run on every multiprocessor."""
    wanted = max(1, 4 * processors // blocks)
    return max(LEAST_EACH, triton.cdiv(entries, wanted * LEAST_EACH) * LEAST_EACH)


def _store(entries: Entries) -> tuple[Tensor | int, ...]:
    """Tensors and the distance of entries. Another tensor stands for what is not there and is not
    read: triton 3.6 compiles no None inside of a tuple."""
    p, none = entries.packing, entries.start
    scales = (none,) * 4 if p is None else (p.k_scale, p.k_zero, p.v_scale, p.v_zero)
    bias = none if entries.bias is None else entries.bias
    return (
        entries.k,
        entries.v,
        entries.start,
        entries.length,
        bias,
        *scales,
        entries.k.stride(0),
    )


def _check(q: Tensor, parts: Sequence[Entries], group: int) -> None:
    dim = q.shape[2]
    assert q.stride(2) == 1, f"query entries must be contiguous, strides are {q.stride()}"
    assert 1 <= group <= MAX_GROUP and dim <= MAX_DIM, (group, dim)
    for entries in parts:
        assert len(entries.spans) == len(parts[0].spans), "entry sets of different heads"
        assert entries.k.stride() == entries.v.stride() and entries.k.stride(1) == 1, (
            entries.k.stride()
        )
        assert entries.start.dtype == entries.length.dtype == torch.int32, (
            "start and length are int32"
        )
        if entries.packing is None:
            assert entries.k.dtype == entries.v.dtype == q.dtype, (entries.k.dtype, q.dtype)
            assert entries.k.shape[1] == entries.v.shape[1] == dim, (entries.k.shape, dim)
        else:
            wide = dim * entries.packing.bits // 8
            assert entries.k.dtype == entries.v.dtype == torch.uint8, entries.k.dtype
            assert entries.k.shape[1] == entries.v.shape[1] == wide, (entries.k.shape, wide)
            assert entries.k.is_contiguous(), "packed stores are contiguous"
        assert entries.bias is None or entries.bias.dtype == torch.float32, "bias is fp32"
