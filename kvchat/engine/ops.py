"""One function per operation that is not attention: Triton on a card, torch elsewhere.

Each has the name, signature and meaning of its twin in `kernels/reference.py`. Attention has
backends.
"""

import os
from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from kvchat.engine.sizes import MASS_VALUES
from kvchat.kernels import reference
from kvchat.kernels.reference import (
    dequantize,
    pack,
    pq_decode,
    pq_table,
    pq_worth,
    quantize,
    unpack,
)

SCORED = 4096  # entries that are scored at a time on the CPU

__all__ = [
    "add_rms_norm",
    "column_mass",
    "combine",
    "dequantize",
    "gather_entries",
    "merge_entries",
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
    "window_mass",
]

MAX_DIM = 256  # head size that the kernels of masses take
P = ParamSpec("P")
R = TypeVar("R")


def kernel(path: str, x: Tensor) -> Callable[..., Any] | None:
    """The launcher at `module:name` of `kvchat.kernels` if `x` is on a card, else None.

    `KVCHAT_KERNELS=torch` in the environment does without.
    """
    return _loaded(path) if x.is_cuda else None


@cache
def _loaded(path: str) -> Callable[..., Any] | None:
    if os.environ.get("KVCHAT_KERNELS") == "torch" or find_spec("triton") is None:
        return None
    module, name = path.split(":")
    return getattr(import_module(f"kvchat.kernels.{module}"), name)


def _op(twin: Callable[P, R], module: str) -> Callable[P, R]:
    """The kernel of the twin's name where its first argument is on a card, else the twin."""

    @wraps(twin)
    def op(*args: P.args, **kwargs: P.kwargs) -> R:
        first: Any = args[0]
        return (kernel(f"{module}:{twin.__name__}", first) or twin)(*args, **kwargs)

    return op


merge_entries = _op(reference.merge_entries, "merge")
rope = _op(reference.rope, "norm_rope")
swiglu = _op(reference.swiglu, "norm_rope")


def combine(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Exact attention over a union of entry sets from that over each of them; see the reference.

    Two parts, as most layers have, share by a sigmoid of the difference of their log-sum-exps.
    """
    launch = kernel("merge:combine", parts[0][0])
    if launch is not None or len(parts) != 2:
        return (launch or reference.combine)(parts)
    (o, lse), (other, other_lse) = parts
    share = torch.sigmoid(other_lse - lse).nan_to_num_(0.0)  # both empty: 0
    joined = torch.lerp(o.float(), other.float(), share[..., None])
    return joined, torch.logaddexp(lse, other_lse)


def gather_entries(pool: Tensor, ids: Tensor) -> Tensor:
    """Entries `ids [H, k]` of `pool [H, capacity, ...]`, where `ids` are; see the reference.

    A card reads pinned memory of the host by itself, other memory the host has to gather.
    """
    reachable = pool.device == ids.device or pool.is_pinned()
    launch = kernel("gather:gather_entries", ids) if reachable else None
    if launch:
        return launch(pool, ids)
    heads, capacity = pool.shape[:2]
    base = torch.arange(heads, device=ids.device)[:, None] * capacity
    index = (ids + base).flatten().to(pool.device)
    found = pool.flatten(0, 1).index_select(0, index).to(ids.device)
    return found.view(*ids.shape, *pool.shape[2:])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / rms(x) * weight` over the last dim; see the reference."""
    if launch := kernel("norm_rope:rms_norm", x):
        return launch(x, weight, eps)
    return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x + delta` and its `rms_norm`; see the reference."""
    if launch := kernel("norm_rope:add_rms_norm", x):
        return launch(x, delta, weight, eps)
    added = x + delta
    return added, rms_norm(added, weight, eps)


def pq_assign(x: Tensor, centroids: Tensor) -> Tensor:
    """Codes `[H, N, m]` of `x [H, N, D]`; entries are taken in slices, so the workspace is
    bounded.
    """
    if launch := kernel("pq:pq_assign", x):
        return launch(x, centroids)
    step = max(1, MASS_VALUES // centroids[..., 0].numel())
    return torch.cat([reference.pq_assign(part, centroids) for part in x.split(step, dim=1)], dim=1)


def pq_score(table: Tensor, codes: Tensor) -> Tensor:
    """Logits `[H, G, N]` of coded entries; see the reference.

    On the CPU one look-up serves a whole group, and a slice is turned round while it is in cache.
    """
    if launch := kernel("pq:pq_score", codes):
        return launch(table, codes)
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
    """The `count` best entries of every head, ascending; see the reference.

    No sorting of all entries: the worth of the last one that fits divides them.
    """
    if launch := kernel("pq:pq_select", worth):
        return launch(worth, count)
    heads, entries = worth.shape
    if not 0 < count < entries:
        return reference.pq_select(worth, count)
    bound = torch.topk(worth, count, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    chosen = worth >= bound
    if int(chosen.sum()) > heads * count:  # of those at the boundary only the first
        edge = worth == bound
        missing = count - (chosen & ~edge).sum(dim=1, keepdim=True)
        chosen &= ~edge | (edge.cumsum(dim=1, dtype=torch.int32) <= missing)
    return chosen.nonzero()[:, 1].view(heads, count).int()


def window_mass(q: Tensor, k: Tensor, lse: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Mean mass per key over queries and the heads of a group, `[H, N]`; see the reference."""
    if q.shape[2] <= MAX_DIM and (launch := kernel("mass:window_mass", q)):
        return launch(q, k, lse, seen, scale)
    mass = column_mass(q, k, lse, seen, scale).div_(len(q))
    return mass.view(len(k), -1, k.shape[1]).mean(dim=1)


def column_mass(
    q: Tensor, k: Tensor, lse: Tensor, seen: Tensor, scale: float, power: int = 1
) -> Tensor:
    """Mass per key from all queries together, `[H*G, N]`; see the reference.

    In torch keys are taken in slices: grouped queries meet unexpanded keys in one batched product
    per slice, so the workspace is `MASS_VALUES` logits whatever N is.
    """
    if q.shape[2] <= MAX_DIM and (launch := kernel("mass:column_mass", q)):
        return launch(q, k, lse, seen, scale, power)
    window, query_heads, dim = q.shape
    heads, entries, _ = k.shape
    # [H, G*W, D] and [H, G*W, 1]: all queries of a KV head in one block of entries
    blocks = (q.float() * scale).view(window, heads, -1, dim).permute(1, 2, 0, 3)
    blocks = blocks.reshape(heads, -1, dim)
    total = -lse.float().view(window, heads, -1).permute(1, 2, 0).reshape(heads, -1, 1)
    first = int(seen.min())  # entries below it are seen by all queries
    step = max(1, MASS_VALUES // (window * query_heads))
    out = k.new_empty(heads, query_heads // heads, entries, dtype=torch.float32)
    for a in range(0, entries, step):
        part = k[:, a : a + step].float().transpose(1, 2)  # [H, D, n]
        mass = torch.baddbmm(total, blocks, part)  # [H, G*W, n]
        mass = (mass if power == 1 else mass.mul_(power)).exp_()
        mass = mass.view(heads, -1, window, part.shape[2])
        if a + step > first:
            hidden = torch.arange(a, a + part.shape[2], device=k.device) >= seen[:, None]
            mass.masked_fill_(hidden, 0.0)  # [W, n]
        torch.sum(mass, dim=2, out=out[:, :, a : a + step])
    return out.view(query_heads, entries)
