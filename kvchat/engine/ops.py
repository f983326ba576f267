"""One function per operation that is not attention; the torch path. Attention has backends.

Each function has the name, signature and meaning of its twin in `kernels/reference.py`.
"""

import torch
from torch import Tensor

from kvchat.engine.sizes import MASS_VALUES
from kvchat.kernels import reference
from kvchat.kernels.reference import (
    combine,
    dequantize,
    merge_rows,
    pack,
    pq_decode,
    pq_table,
    pq_worth,
    quantize,
    rope,
    swiglu,
    unpack,
)

SCORED = 4096  # rows that are scored at a time on the CPU

__all__ = [
    "column_mass",
    "combine",
    "dequantize",
    "merge_rows",
    "pack",
    "pq_assign",
    "pq_decode",
    "pq_score",
    "pq_select",
    "pq_table",
    "pq_worth",
    "quantize",
    "rms_norm",
    "rope",
    "swiglu",
    "unpack",
]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / rms(x) * weight` over the last dim; see the reference."""
    return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)


def pq_assign(x: Tensor, centroids: Tensor) -> Tensor:
    """Codes `[H, N, m]` of `x [H, N, D]`; rows are taken in slices, so the workspace is bounded."""
    step = max(1, MASS_VALUES // centroids[..., 0].numel())
    return torch.cat([reference.pq_assign(part, centroids) for part in x.split(step, dim=1)], dim=1)


def pq_score(table: Tensor, codes: Tensor) -> Tensor:
    """Logits `[H, G, N]` of coded rows; see the reference.

    On the CPU one look-up serves a whole group, and a slice is turned round while it is in cache.
    """
    if codes.device.type != "cpu":
        return reference.pq_score(table, codes)
    heads, group, subspaces, count = table.shape
    out = table.new_empty(heads, group, codes.shape[1])
    base = torch.arange(0, subspaces * count, count, dtype=torch.int32)
    for head, own in enumerate(table):
        entries = own.permute(1, 2, 0).reshape(-1, group)  # [m * C, G]
        for a in range(0, codes.shape[1], SCORED):
            bags = codes[head, a : a + SCORED].int() + base
            scores = torch.nn.functional.embedding_bag(bags, entries, mode="sum")
            out[head, :, a : a + SCORED] = scores.T
    return out


def pq_select(worth: Tensor, count: int) -> Tensor:
    """The `count` best rows of every head, ascending; see the reference.

    No sorting of all rows: the worth of the last one that fits divides them.
    """
    heads, rows = worth.shape
    if not 0 < count < rows:
        return reference.pq_select(worth, count)
    bound = torch.topk(worth, count, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    chosen = worth >= bound
    if int(chosen.sum()) > heads * count:  # of those at the boundary only the first
        edge = worth == bound
        missing = count - (chosen & ~edge).sum(dim=1, keepdim=True)
        chosen &= ~edge | (edge.cumsum(dim=1, dtype=torch.int32) <= missing)
    return chosen.nonzero()[:, 1].view(heads, count).int()


def column_mass(
    q: Tensor, k: Tensor, lse: Tensor, seen: Tensor, scale: float, power: int = 1
) -> Tensor:
    """Mass per key from all queries together, `[H*G, N]`; keys are taken in slices.

    Grouped queries meet unexpanded keys in one batched product per slice, so the workspace is
    `MASS_VALUES` logits whatever N is.
    """
    window, query_heads, dim = q.shape
    heads, rows, _ = k.shape
    # [H, G*W, D] and [H, G*W, 1]: all queries of a KV head in one block of rows
    blocks = (q.float() * scale).view(window, heads, -1, dim).permute(1, 2, 0, 3)
    blocks = blocks.reshape(heads, -1, dim)
    total = -lse.float().view(window, heads, -1).permute(1, 2, 0).reshape(heads, -1, 1)
    first = int(seen.min())  # rows below it are seen by all queries
    step = max(1, MASS_VALUES // (window * query_heads))
    out = k.new_empty(heads, query_heads // heads, rows, dtype=torch.float32)
    for a in range(0, rows, step):
        part = k[:, a : a + step].float().transpose(1, 2)  # [H, D, n]
        mass = torch.baddbmm(total, blocks, part)  # [H, G*W, n]
        mass = (mass if power == 1 else mass.mul_(power)).exp_()
        mass = mass.view(heads, -1, window, part.shape[2])
        if a + step > first:
            hidden = torch.arange(a, a + part.shape[2], device=k.device) >= seen[:, None]
            mass.masked_fill_(hidden, 0.0)  # [W, n]
        torch.sum(mass, dim=2, out=out[:, :, a : a + step])
    return out.view(query_heads, rows)
