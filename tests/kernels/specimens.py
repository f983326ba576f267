"""Launches of every kernel as the engine makes them: what `compiling.py` compiles."""

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

import torch

from kvchat.kernels import attention, mass, merge, norm_rope, pq
from kvchat.kernels.entries import Entries, Packing

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
HEADS = 2


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
        scale = dim**-0.5

        def launch():
            return attention.ragged_attention(q, parts, scale, causal=True)

        what = f"attention, {name}, T={tokens} G={group} D={dim} {dtype}"
        made.append(Specimen(what, launch, sample))

    for dim in (32, 64, 80, 128, 256):
        for dtype in {64: (BF16, F32), 128: (BF16, F16, F32)}.get(dim, (BF16,)):
            chat = entries(dim, dtype)
            for tokens in (1, 4, 64):
                add(
                    "reading",
                    tokens,
                    8,
                    dim,
                    dtype,
                    chat,
                    sample=(tokens, dim, dtype) == (64, 128, BF16),
                )
            for tokens, group in ((1, 1), (1, 4), (4, 8), (64, 4)):
                sample = (tokens, group, dim, dtype) == (1, 4, 128, BF16)
                kept = entries(dim, dtype, bias=True)
                add("kept entries", tokens, group, dim, dtype, kept, chat, sample=sample)
        for bits in (8, 4):
            packed, rest = entries(dim, BF16, bits), entries(dim, BF16)
            for tokens in (1, 4, 64):
                sample = (bits, tokens, dim) == (4, 1, 128)
                add(f"{bits} bits", tokens, 8, dim, BF16, packed, rest, rest, sample=sample)
    return made


def masses() -> list[Specimen]:
    """Scores of the last queries, and sums of a whole chunk's."""
    made = []

    def add(dim, dtype, window, sample=False):
        q = torch.zeros(window, HEADS * 4, dim, dtype=dtype)
        k = torch.zeros(HEADS, 200, dim, dtype=dtype)
        lse, seen = torch.zeros(window, HEADS * 4), torch.full((window,), 200)

        def launch():
            mass.window_mass(q, k, lse, seen, 0.1)
            if sample:
                return
            mass.column_mass(q, k, lse, seen, 0.1)
            mass.column_mass(q, k, lse, seen, 0.1, 2)

        made.append(Specimen(f"mass, W={window} D={dim} {dtype}", launch, sample))

    for dim in (32, 64, 80, 128, 256):
        for dtype in (BF16, F16, F32):
            add(dim, dtype, 1)
            add(dim, dtype, 32, sample=(dim, dtype) == (128, BF16))
    return made


def small() -> list[Specimen]:
    """Everything else, by dtype."""
    made = []

    def add(name, launch, sample=False):
        made.append(Specimen(name, launch, sample))

    for dtype in (BF16, F16, F32):
        for hidden in (2048, 4096, 8192):
            x, weight = torch.zeros(3, hidden, dtype=dtype), torch.zeros(hidden, dtype=dtype)
            sample = (hidden, dtype) == (4096, BF16)
            add(f"norm {dtype}", lambda x=x, w=weight: norm_rope.rms_norm(x, w, 1e-5))
            add(
                f"sum, norm {dtype}",
                lambda x=x, w=weight: norm_rope.add_rms_norm(x, x, w, 1e-5),
                sample,
            )
        gate = torch.zeros(3, 14336, dtype=dtype)
        add(f"swiglu {dtype}", lambda x=gate: norm_rope.swiglu(x, x), dtype == BF16)
        for dim in (64, 128, 256):
            sample = (dim, dtype) == (128, BF16)
            x, angle = torch.zeros(3, 32, dim, dtype=dtype), torch.zeros(3, dim // 2)
            add(f"rope {dtype}", lambda x=x, a=angle: norm_rope.rope(x, a, a), sample)
            flat, runs, weight = (
                torch.zeros(64, dim, dtype=dtype),
                torch.full((16,), 4),
                torch.zeros(64),
            )
            add(
                f"merge {dtype}",
                lambda x=flat, w=weight, n=runs: merge.merge_entries(x, w, n),
                sample,
            )
            pair = (torch.zeros(1, 32, dim, dtype=dtype), torch.zeros(1, 32))
            add(f"combine {dtype}", lambda p=pair: merge.combine([p, p, p]), sample)
            pool = torch.zeros(HEADS, 64, 2, dim, dtype=dtype)
            ids = torch.zeros(HEADS, 16, dtype=torch.int32)
            add(f"gather {dtype}", lambda p=pool, i=ids: merge.gather_entries(p, i), sample)
            for parts, count in ((2, 64), (4, 256)):
                keys = torch.zeros(HEADS, 200, dim, dtype=dtype)
                table = torch.zeros(HEADS, parts, count, dim // parts)
                add(
                    f"assign {dtype}",
                    lambda x=keys, c=table: pq.pq_assign(x, c),
                    sample and parts == 2,
                )
    for group in (1, 4, 8):
        for parts, count in ((2, 64), (4, 256)):
            table = torch.zeros(HEADS, group, parts, count)
            codes = torch.zeros(HEADS, 300, parts, dtype=torch.uint8)
            sample = (group, parts) == (4, 2)
            add("score", lambda t=table, c=codes: pq.pq_score(t, c), sample)
    worth = torch.zeros(HEADS, 5000)
    add("select", lambda: pq.pq_select(worth, 500), True)
    return made


SPECIMENS = [*attentions(), *masses(), *small()]
