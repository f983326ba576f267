"""Launches of every kernel as the engine makes them: what `compiling.py` compiles."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import gcd

import torch

from kvchat.kernels import mass, merge, norm_rope, pq
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
        gate = zeros(3, 14336)
        add(f"swiglu {dtype}", norm_rope.swiglu, gate, gate, sample=dtype == BF16)
        for dim in (64, 128, 256):
            sample, angle = (dim, dtype) == (128, BF16), torch.zeros(3, dim // 2)
            pair, ids = (zeros(1, 32, dim), torch.zeros(1, 32)), torch.zeros(HEADS, 16).int()
            for name, kernel, *given in (
                ("rope", norm_rope.rope, zeros(3, 32, dim), angle, angle),
                ("merge", merge.merge_entries, zeros(64, dim), torch.zeros(64), RUNS),
                ("combine", merge.combine, [pair] * 3),
                ("gather", merge.gather_entries, zeros(HEADS, 64, 2, dim), ids),
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


SPECIMENS = [*attentions(), *masses(), *small()]
