"""Every Triton kernel against its torch twin, torch's own attention (SDPA, flex_attention,
varlen_attn), and what the card itself can copy and multiply.

    python benchmarks/kernels.py [--rounds 15]

Needs a CUDA card; has never been run on one. Ways of a cell take turns, a cache-sized buffer is
overwritten before each, the median counts. Writes docs/bench/cards/CARD.json.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import rivals
import torch
import triton
from rivals import Way
from torch import Tensor

from kvchat import __version__
from kvchat.kernels import attention, low_bits, mass, merge, norm_rope, pq, reference, retrieval
from kvchat.kernels.entries import Entries

FOLDER = Path(__file__).parent.parent / "docs" / "bench" / "cards"
BF16 = torch.bfloat16


@dataclass
class Cell:
    """One kernel at one shape: what it must read and write, or multiply, at least."""

    name: str
    ways: dict[str, Way]  # the first is ours, the second its twin
    bytes: int = 0
    flops: int = 0
    times: dict[str, list[float]] = field(default_factory=dict)


def ragged(lengths: list[int], dim: int, device: torch.device) -> Entries:
    """Random rows of uneven heads."""
    ends = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    k, v = torch.randn(2, ends[-1], dim, device=device, dtype=BF16)
    start = torch.tensor(ends[:-1], dtype=torch.int32, device=device)
    length = torch.tensor(lengths, dtype=torch.int32, device=device)
    return Entries(k, v, start, length, tuple(zip(ends[:-1], lengths, strict=True)))


def decoding(name: str, lengths: list[int], dim: int, group: int, device: torch.device) -> Cell:
    """One token over a ragged segment."""
    rows, scale = ragged(lengths, dim, device), dim**-0.5
    q = torch.randn(1, len(lengths) * group, dim, device=device, dtype=BF16)
    ways = {
        "kernel": lambda: attention.ragged_attention(q, [rows], scale)[0],
        "twin": lambda: reference.ragged_attention(q, [rows], scale)[0],
        **rivals.one_query(q, rows, scale),
    }
    return Cell(f"ragged_attention, {name}", ways, bytes=rows.k.nbytes + rows.v.nbytes)


def reading(tokens: int, before: int, dim: int, heads: int, group: int, device) -> Cell:
    """A chunk of a document behind what was read of it."""
    rows, scale = ragged([before + tokens] * heads, dim, device), dim**-0.5
    q = torch.randn(tokens, heads * group, dim, device=device, dtype=BF16)
    ways = {
        "kernel": lambda: attention.ragged_attention(q, [rows], scale, causal=True)[0],
        "twin": lambda: reference.ragged_attention(q, [rows], scale, causal=True)[0],
        **rivals.chunk(q, rows, scale),
    }
    seen = tokens * before + tokens * (tokens + 1) // 2
    flops = 4 * heads * group * dim * seen
    return Cell(f"ragged_attention, {tokens} tokens behind {before}", ways, flops=flops)


def cells(device: torch.device, small: bool = False) -> list[Cell]:
    """The shapes of an 8B model: 8 KV heads of 4 query heads of 128; `small` ones only to try."""
    n, dim, heads, group = (64, 32, 2, 2) if small else (32768, 128, 8, 4)
    uneven = [n * 2 ** (i % 3) // 4 for i in range(heads)]
    made = [
        decoding("even heads", [n] * heads, dim, group, device),
        decoding("uneven heads", uneven, dim, group, device),
        decoding("one long head", [4 * n] + [n // 32] * (heads - 1), dim, group, device),
        reading(n // 16, 0, dim, heads, group, device),
        reading(n // 16, n // 4, dim, heads, group, device),
    ]

    def random(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    def add(name: str, kernel: Callable, *given, moved: int, flops: int = 0) -> None:
        twin = getattr(reference, kernel.__name__)
        ways = {"kernel": lambda: kernel(*given), "twin": lambda: twin(*given)}
        made.append(Cell(f"{kernel.__name__}{name}", ways, moved, flops))

    q, k, scale = random(32, heads * group, dim), random(heads, n, dim), dim**-0.5
    lse, seen = torch.full(q.shape[:2], 12.0, device=device), torch.full((32,), n, device=device)
    add("", mass.window_mass, q, k, lse, seen, scale, moved=k.nbytes + 4 * heads * n)
    add("", mass.column_mass, q, k, lse, seen, scale, moved=k.nbytes + 4 * heads * group * n)
    flat, weight = random(heads * n, dim), torch.rand(heads * n, device=device)
    runs = torch.full((heads * n // 4,), 4, device=device)
    add("", merge.merge_entries, flat, weight, runs, moved=flat.nbytes * 5 // 4)
    hidden = dim * heads * group
    x, gain = random(n // 16, hidden), random(hidden)
    add("", norm_rope.rms_norm, x, gain, 1e-5, moved=2 * x.nbytes)
    add("", norm_rope.add_rms_norm, x, x, gain, 1e-5, moved=4 * x.nbytes)
    add("", norm_rope.swiglu, x, x, moved=3 * x.nbytes)
    angle = torch.rand(n // 16, dim // 2, device=device)
    add("", norm_rope.rope, x.view(n // 16, -1, dim), angle, angle, moved=2 * x.nbytes)
    count = 8 if small else 64
    centroids = random(heads, 2, count, dim // 2, dtype=torch.float32)
    add("", pq.pq_assign, k, centroids, moved=k.nbytes, flops=2 * heads * n * count * dim)
    table = random(heads, group, 2, count, dtype=torch.float32)
    codes = torch.randint(count, (heads, n, 2), device=device).to(torch.uint8)
    add("", pq.pq_score, table, codes, moved=codes.nbytes + 4 * heads * group * n)
    worth = torch.rand(heads, n, device=device)
    add("", pq.pq_select, worth, n // 10, moved=4 * worth.nbytes)
    pool = random(heads, n, 2 * dim)
    ids = torch.randint(n, (heads, n // 10), device=device, dtype=torch.int32).sort(1).values
    moved = 2 * ids.numel() * pool[0, 0].nbytes
    given = (pool[:, :0, :dim],) * 2, ids, 0, n // 10
    add("", retrieval.pq_fetch, pool, *given, moved=moved)
    if device.type == "cuda":
        add(", pinned host", retrieval.pq_fetch, pool.cpu().pin_memory(), *given, moved=moved // 2)
    row, weight = random(1, hidden), torch.randint(-127, 128, (4 * hidden, hidden), device=device)
    scale, pairs = random(4 * hidden), weight[:, ::2].to(torch.uint8)
    eight, four = weight.to(torch.int8), random(hidden // 32, 4 * hidden, 2)
    add("", low_bits.int8_product, row, eight, scale, moved=eight.nbytes)
    add("", low_bits.int4_product, row, pairs, four, moved=pairs.nbytes + four.nbytes)
    return made


def runs(cell: str, name: str, run: Way) -> bool:
    """Whether a rival runs here; ours and its twin must."""
    try:
        run()
    except Exception as error:  # of a compiler, a shape it does not take, a card it does not know
        if name in ("kernel", "twin"):
            raise
        print(f"{cell}: {name} does not run: {str(error).partition(chr(10))[0]}", file=sys.stderr)
        return False
    return True


def measure(found: list[Cell], rounds: int) -> None:
    """Milliseconds of every way on the card, in turn; the first round is not counted."""
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    for cell in found:
        for name in [name for name, run in cell.ways.items() if not runs(cell.name, name, run)]:
            del cell.ways[name]
        for number in range(rounds + 1):
            for name, run in cell.ways.items():
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                flush.zero_()
                begin.record()
                run()
                end.record()
                torch.cuda.synchronize()
                if number:
                    cell.times.setdefault(name, []).append(begin.elapsed_time(end))


def limits(rounds: int) -> tuple[float, float]:
    """Bytes per second of a copy, and operations per second of a bf16 product, of random data."""
    a, b = torch.randn(2, 2**28, device="cuda")
    m = torch.randn(8192, 8192, device="cuda", dtype=BF16)
    copy = Cell("copy", {"copy": lambda: b.copy_(a)}, bytes=2 * a.nbytes)
    product = Cell("product", {"product": lambda: m @ m}, flops=2 * 8192**3)
    measure([copy, product], rounds)
    return (
        copy.bytes / statistics.median(copy.times["copy"]) * 1e3,
        product.flops / statistics.median(product.times["product"]) * 1e3,
    )


def described(cell: Cell, bandwidth: float, rate: float) -> dict:
    """Medians, times faster than the others, and the share of what the card can do."""
    median = {name: statistics.median(samples) for name, samples in cell.times.items()}
    ours = median["kernel"]
    least = max(cell.bytes / bandwidth, cell.flops / rate) * 1e3
    return {
        "median_ms": {name: round(ms, 4) for name, ms in median.items()},
        "min_ms": {name: round(min(samples), 4) for name, samples in cell.times.items()},
        "times_faster": {n: round(ms / ours, 2) for n, ms in median.items() if n != "kernel"},
        "share_of_limit": round(least / ours, 3),
    }


def main() -> int:
    """Measure, print a line per cell, write the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    if not torch.cuda.is_available():
        print(
            "bench-kernels measures a CUDA card and there is none here "
            f"(torch {torch.__version__}); make test runs the kernels interpreted, "
            "make test-compile compiles them",
            file=sys.stderr,
        )
        return 7
    device, card = torch.device("cuda"), torch.cuda.get_device_name()
    bandwidth, rate = limits(rounds)
    print(f"{card}: copies {bandwidth / 1e9:,.0f} GB/s, multiplies {rate / 1e12:,.0f} TFLOP/s bf16")
    found = cells(device)
    measure(found, rounds)
    results = {cell.name: described(cell, bandwidth, rate) for cell in found}
    for name, result in results.items():
        others = ", ".join(f"{n} {x}x" for n, x in result["times_faster"].items())
        ours = result["median_ms"]["kernel"]
        print(f"{name:<50} {ours:9.4f} ms  {result['share_of_limit']:6.1%} of the limit  {others}")
    path = FOLDER / f"{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    versions = {"kvchat": __version__, "torch": torch.__version__, "triton": triton.__version__}
    known = {"card": card, "versions": versions, "bytes_per_s": bandwidth, "flop_per_s": rate}
    path.write_text(json.dumps(known | {"kernels": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
