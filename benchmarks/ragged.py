"""One decode query over heads of unequal length on the CPU: ways to attend, in turn.

    python benchmarks/ragged.py [--threads N] [--pairs 15] [--flex]

`--flex` compiles flex_attention, which takes a C++ compiler and up to a minute. Padded ways are
given their padded copy of the entries for nothing.
"""

import argparse

import torch
from pairs import interleaved, report, save, summary
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention as sdpa

from kvchat.engine.attention.entries import Entries
from kvchat.engine.attention.torch_backend import TorchBackend

SHAPES = {  # KV heads, queries of a head, head size, entries of a head on average
    "1B shape, 10 % of 32k": (8, 4, 64, 3277),
    "8B shape, 10 % of 32k": (8, 4, 128, 3277),
    "demo model, 25 % of 8k": (4, 2, 32, 2048),
}


def ways_of(heads: int, group: int, dim: int, rows: int, dtype: torch.dtype, flex: bool) -> dict:
    """Every way over the same random entries."""
    generator = torch.Generator().manual_seed(0)
    uneven = torch.rand(heads, generator=generator) + 0.2
    lengths = (uneven / uneven.sum() * rows * heads).int().tolist()
    starts = [sum(lengths[:h]) for h in range(heads)]
    spans = tuple(zip(starts, lengths, strict=True))
    k, v = (torch.randn(sum(lengths), dim, generator=generator).to(dtype) for _ in range(2))
    q = torch.randn(1, heads * group, dim, generator=generator).to(dtype)
    table = torch.tensor(spans, dtype=torch.int32)
    store, scale = Entries(k, v, table[:, 0], table[:, 1], spans), dim**-0.5
    longest = max(lengths)
    padded_k, padded_v = (torch.zeros(1, heads, longest, dim, dtype=dtype) for _ in range(2))
    for head, (a, n) in enumerate(spans):
        padded_k[0, head, :n], padded_v[0, head, :n] = k[a : a + n], v[a : a + n]
    grouped = q.view(1, heads, group, dim)
    seen = torch.arange(longest) < torch.tensor(lengths)[:, None]
    mask = torch.zeros(1, heads, 1, longest, dtype=dtype).masked_fill(
        ~seen[None, :, None], float("-inf")
    )

    def products() -> list[torch.Tensor]:
        """Per head, logits rounded to the dtype."""
        return [
            ((grouped[0, h] * scale) @ k[a : a + n].t()).float().softmax(-1).to(dtype)
            @ v[a : a + n]
            for h, (a, n) in enumerate(spans)
        ]

    backend = TorchBackend()
    ways = {
        "kvchat, head by head": lambda: backend.attend(q, store, scale),
        "per head, products": products,
        "padded SDPA with a mask": lambda: sdpa(grouped, padded_k, padded_v, attn_mask=mask),
    }
    if flex:
        limits = torch.tensor(lengths)
        blocks = create_block_mask(
            lambda b, h, i, j: j < limits[h // group], 1, heads * group, 1, longest, "cpu"
        )
        compiled = torch.compile(flex_attention)
        query = q.transpose(0, 1)[None]
        ways["compiled flex_attention"] = lambda: compiled(
            query, padded_k, padded_v, block_mask=blocks, enable_gqa=True
        )
    return ways


@torch.inference_mode()
def main() -> None:
    """Measure every shape in both dtypes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--flex", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, shape in SHAPES.items():
        for dtype in (torch.bfloat16, torch.float32):
            cell = f"ragged attention, {name}, {str(dtype).removeprefix('torch.')}"
            print(f"{cell}, {options.threads} threads", flush=True)
            ways = ways_of(*shape, dtype, options.flex)
            found = summary(interleaved(ways, options.pairs), "padded SDPA with a mask")
            report(found)
            save(cell, found)


if __name__ == "__main__":
    main()
