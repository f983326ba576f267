"""Launches of every kernel as the engine makes them: what `compiling.py` compiles."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import gcd

import torch

from kvchat.kernels import low_bits, mass, merge, norm_rope, place, pq, retrieval
from kvchat.kernels.attention import ragged_attention
from kvchat.kernels.entries import Entries, Packing

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
HEADS, DIMS, CODES = 2, (32, 64, 80, 128, 256), ((2, 64), (4, 256))
RUNS = torch.full((16,), 4)


@dataclass(frozen=True)
class Specimen:
    """One call of a launcher; `sample` ones are compiled in every test run."""

    name: str
    launch: Callable[[], object]
    sample: bool = False


def entries(dim: int, dtype: torch.dtype, bits: int = 16, bias: bool = False) -> Entries:
    """64 entries per head."""
    count = 64 * HEADS
    spans = tuple((64 * h, 64) for h in range(HEADS))
    start, length = (torch.tensor(x, dtype=torch.int32) for x in zip(*spans, strict=True))
    weight = torch.zeros(count) if bias else None
    if bits == 16:
        k, v = torch.zeros(2, count, dim, dtype=dtype)
        return Entries(k, v, start, length, spans, weight)
    k, v = torch.zeros(2, count, dim * bits // 8, dtype=torch.uint8)
    keys = torch.zeros(2, count // 32, dim, dtype=F16)
    values = torch.zeros(2, count, dim // gcd(dim, 32), dtype=F16)
    return Entries(k, v, start, length, spans, weight, Packing(bits, *keys, *values))


def attentions() -> list[Specimen]:
    """A compressed document and the chat; reading; a document in few bits, its rest, the chat."""
    made = []

    def add(name, tokens, group, dim, dtype, *parts, sample=False):
        q = torch.zeros(tokens, HEADS * group, dim, dtype=dtype)
        what = f"attention, {name}, T={tokens} G={group} D={dim} {dtype}"
        made.append(Specimen(what, lambda: ragged_attention(q, parts, 0.1, causal=True), sample))

    for dim in DIMS:
        for dtype in {64: (BF16, F32), 128: (BF16, F16, F32)}.get(dim, (BF16,)):
            chat, kept = entries(dim, dtype), entries(dim, dtype, bias=True)
            usual = (dim, dtype) == (128, BF16)
            for tokens in (1, 4, 64):
                add("reading", tokens, 8, dim, dtype, chat, sample=usual and tokens == 64)
            for tokens, group in ((1, 1), (1, 4), (4, 8), (64, 4)):
                sample = usual and (tokens, group) == (1, 4)
                add("kept entries", tokens, group, dim, dtype, kept, chat, sample=sample)
        for bits in (8, 4, 2):
            packed, rest = entries(dim, BF16, bits), entries(dim, BF16)
            for tokens in (1, 4, 64):
                sample = (bits, tokens, dim) == (2, 1, 128)
                add(f"{bits} bits", tokens, 8, dim, BF16, packed, rest, rest, sample=sample)
    return made


def masses() -> list[Specimen]:
    """Scores of the last queries, and sums of a whole chunk's."""
    made = []
    for dim, dtype, window in product(DIMS, (BF16, F16, F32), (1, 32)):
        q = torch.zeros(window, HEADS * 4, dim, dtype=dtype)
        k = torch.zeros(HEADS, 200, dim, dtype=dtype)
        given = q, k, torch.zeros(window, HEADS * 4), torch.full((window,), 200), 0.1
        what = f"mass, W={window} D={dim} {dtype}"
        sample = (dim, dtype, window) == (128, BF16, 32)
        made.append(Specimen(what, partial(mass.window_mass, *given), sample))
        made += [Specimen(what, partial(mass.column_mass, *given, power)) for power in (1, 2)]
    return made


def small() -> list[Specimen]:
    """Everything else, by dtype."""
    made = []

    def add(name, kernel, *given, sample=False):
        made.append(Specimen(name, partial(kernel, *given), sample))

    for dtype in (BF16, F16, F32):
        zeros = partial(torch.zeros, dtype=dtype)
        for hidden in (2048, 4096, 8192):
            x, weight, sample = zeros(3, hidden), zeros(hidden), (hidden, dtype) == (4096, BF16)
            add(f"norm {dtype}", norm_rope.rms_norm, x, weight, 1e-5)
            add(f"sum, norm {dtype}", norm_rope.add_rms_norm, x, x, weight, 1e-5, sample=sample)
            add(f"both norms {dtype}", norm_rope.add_rms_norm, x, x, weight, 1e-5, weight, 0.5)
        gate = zeros(3, 14336)
        add(f"swiglu {dtype}", norm_rope.swiglu, gate, gate, sample=dtype == BF16)
        add(f"geglu {dtype}", norm_rope.geglu, gate, gate)
        for dim in (64, 128, 256):
            sample, angle = (dim, dtype) == (128, BF16), torch.zeros(3, dim // 2)
            pair = zeros(1, 32, dim), torch.zeros(1, 32)
            for name, kernel, *given in (
                ("rope", norm_rope.rope, zeros(3, 32, dim), angle, angle),
                ("merge", merge.merge_entries, zeros(64, dim), torch.zeros(64), RUNS),
                ("combine", merge.combine, [pair] * 3),
            ):
                add(f"{name} {dtype}", kernel, *given, sample=sample)
            for parts, count in CODES:
                keys, table = zeros(HEADS, 200, dim), torch.zeros(HEADS, parts, count, dim // parts)
                add(f"assign {dtype}", pq.pq_assign, keys, table, sample=sample and parts == 2)
    for group, (parts, count) in product((1, 4, 8), CODES):
        table = torch.zeros(HEADS, group, parts, count)
        codes = torch.zeros(HEADS, 300, parts, dtype=torch.uint8)
        add("score", pq.pq_score, table, codes, sample=(group, parts) == (4, 2))
    add("select", pq.pq_select, torch.zeros(HEADS, 5000), 500, sample=True)
    return made


def placed() -> list[Specimen]:
    """One token's entries, by what stands between its projections and attention."""
    made = []
    for dim, dtype in product(DIMS, (BF16, F16, F32)):
        angle, factors, raised = torch.zeros(1, dim // 2), torch.zeros(dim), torch.zeros(1)
        joined = torch.zeros(1, 12 * dim, dtype=dtype)
        stores = torch.zeros(2, HEADS, 64, dim, dtype=dtype)
        given = joined, angle, angle, *stores, torch.zeros(1, dtype=torch.int64)
        for name, sizes in (("", None), ("head", (dim, dim)), ("all", (8 * dim, HEADS * dim))):
            norms = None if sizes is None else tuple(torch.zeros(n, dtype=dtype) for n in sizes)
            for beside in ((None, None), (factors, raised)):
                what = f"place, D={dim} {dtype} norms {name or 'none'}"
                sample = (dim, dtype, name) == (128, BF16, "all")
                launch = partial(place.place_entries, *given, norms, 1e-5, *beside)
                made.append(Specimen(what, launch, sample and beside[0] is not None))
    return made


def products() -> list[Specimen]:
    """A few rows by weights in few bits: a token, a question, and all numbers of a weight."""
    made = []
    for dtype, tokens in product((BF16, F16, F32), (1, 20, 64)):
        x, bias = torch.zeros(tokens, 4096, dtype=dtype), torch.zeros(4096, dtype=dtype)
        codes, scale = torch.zeros(4096, 4096, dtype=torch.int8), torch.zeros(4096, dtype=BF16)
        what, sample = f"T={tokens} {dtype}", (dtype, tokens) == (BF16, 1)
        eight = partial(low_bits.int8_product, x, codes, scale, bias)
        made.append(Specimen(f"int8 {what}", eight, sample))
        for group in (32, 64, 128):
            packed = torch.zeros(4096, 2048, dtype=torch.uint8)
            scales = torch.zeros(4096 // group, 4096, 2, dtype=BF16)
            four = partial(low_bits.int4_product, x, packed, scales)
            made.append(Specimen(f"int4 g={group} {what}", four, sample and group == 128))
            if tokens == 1:
                back = partial(low_bits.int4_numbers, packed, scales, dtype)
                made.append(
                    Specimen(f"int4 numbers g={group} {dtype}", back, sample and group == 32)
                )
    return made


def retrievals() -> list[Specimen]:
    """Entries that a token finds by itself, by codes of the default and by other lists."""
    made = []
    shapes = product((BF16, F16, F32), (64, 128, 256), ((2, 64), (1, 256)))
    for dtype, dim, (parts, count) in shapes:
        q, aggregates = torch.zeros(8, dim, dtype=dtype), ("softmax_sum", "max", "logit_sum")
        book, cells = torch.zeros(HEADS, parts, count, dim // parts), count**parts
        sizes, state = torch.zeros(HEADS, cells), torch.zeros(HEADS + 1)
        usual = (dtype, dim, parts) == (BF16, 128, 2)
        for aggregate in aggregates if usual else aggregates[:1]:
            given = q, book, sizes, 100, 0.1, aggregate, state
            sample = usual and aggregate == aggregates[0]
            what = f"rank, m={parts} D={dim} {dtype} {aggregate}"
            made.append(Specimen(what, partial(retrieval.pq_rank, *given), sample))
        offset, order = (torch.zeros(HEADS, n, dtype=torch.int32) for n in (cells + 1, 500))
        pool, ends = torch.zeros(HEADS, 400, 2 * dim, dtype=dtype), offset[:, 1:].contiguous()
        for later in (0, 20):
            late = tuple(torch.zeros(HEADS, later, dim, dtype=dtype) for _ in range(2))
            for listed in ((offset, ends), ()):
                given = pool, late, order, 32, 100, *listed
                what = f"fetch, m={parts} D={dim} {dtype} {later} later {'' if listed else 'ids'}"
                sample = usual and later > 0 and bool(listed)
                made.append(Specimen(what, partial(retrieval.pq_fetch, *given), sample))
    return made


SPECIMENS = [
    *attentions(), *masses(), *small(), *placed(), *products(), *retrievals()
]  # fmt: skip
