"""One function per operation that is not attention: Triton on a card, torch elsewhere.

Each has the name, signature and meaning of its twin in `kernels/reference.py`. Attention has
backends.
"""

from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from kvchat.engine.sizes import MASS_VALUES
from kvchat.kernels import reference

SCORED = 4096  # entries that are scored at a time on the CPU

MAX_DIM = 256  # head size that the kernels of masses take
P = ParamSpec("P")
R = TypeVar("R")


LAUNCHERS: list[str] = []  # of `kvchat.kernels`, that operations have on a card
_without: set[str] = set()  # kernels that are not to be used, in this process
_with: set[str] = set()  # those that were asked for


def use(kernels: str) -> None:
    """Take Triton's kernels on a card, numba's on a CPU, or with `torch` do without; see
    `kernels.kernels_on`."""
    _without.clear()
    _with.clear()
    _with.add(kernels)
    if kernels == "torch":
        _without.add("triton")


def compiled() -> bool:
    """Whether numba's functions are in use."""
    return "numba" in _with


def kernel(path: str, x: Tensor) -> Callable[..., Any] | None:
    """The launcher at `module:name` of `kvchat.kernels` if `x` is on a card, else None."""
    return _loaded(path) if x.is_cuda and not _without else None


@cache
def _loaded(path: str) -> Callable[..., Any] | None:
    if find_spec("triton") is None:
        return None
    module, name = path.split(":")
    launcher: Callable[..., Any] = getattr(import_module(f"kvchat.kernels.{module}"), name)
    return launcher


def _on_card(
    module: str, judge: Callable[..., Tensor | None] = lambda x, *_: x
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The kernel of a function's name where the tensor that `judge` gives is on a card.

    Elsewhere, and if `judge` gives None, the function itself.
    """

    def decorated(plain: Callable[P, R]) -> Callable[P, R]:
        path = f"{module}:{plain.__name__}"
        LAUNCHERS.append(path)

        @wraps(plain)
        def op(*args: P.args, **kwargs: P.kwargs) -> R:
            if kwargs.get("cap"):
                return plain(*args, **kwargs)  # no kernel caps logits
            kwargs.pop("cap", None)
            x = judge(*args)
            launch = None if x is None else kernel(path, x)
            return (launch or plain)(*args, **kwargs)

        return op

    return decorated


# no kernels: attention reads packed entries by itself, and the others are small
dequantize, quantize = reference.dequantize, reference.quantize
pack, unpack = reference.pack, reference.unpack
pq_table, pq_worth = reference.pq_table, reference.pq_worth

merge_entries = _on_card("merge")(reference.merge_entries)
rope = _on_card("norm_rope")(reference.rope)
swiglu = _on_card("norm_rope")(reference.swiglu)
geglu = _on_card("norm_rope")(reference.geglu)
place_entries = _on_card("place")(reference.place_entries)
int4_numbers = _on_card("low_bits")(reference.int4_numbers)
int4_product = _on_card("low_bits")(reference.int4_product)
pq_rank = _on_card("retrieval")(reference.pq_rank)
int8_product = _on_card("low_bits")(reference.int8_product)


@_on_card("merge", lambda parts: parts[0][0])
def combine(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Exact attention over a union of entry sets from that over each of them; see the reference.

    Two parts, as most layers have, share by a sigmoid of the difference of their log-sum-exps.
    In fp64, see there.
    """
    if len(parts) != 2:
        return reference.combine(parts)
    (o, lse), (other, other_lse) = parts
    lse, other_lse = lse.double(), other_lse.double()
    share = torch.sigmoid(other_lse - lse).nan_to_num_(0.0).float()  # both empty: 0
    joined = torch.lerp(o.float(), other.float(), share[..., None])
    return joined, torch.logaddexp(lse, other_lse).float()


def gather_entries(pool: Tensor, ids: Tensor) -> Tensor:
    """Entries `ids [H, k]` of `pool [H, capacity, ...]`, where `ids` are; see the reference.

    For what a card cannot reach: the host gathers, where the pool is.
    """
    heads, capacity = pool.shape[:2]
    base = torch.arange(heads, device=ids.device)[:, None] * capacity
    index = (ids + base).flatten().to(pool.device)
    found = pool.flatten(0, 1).index_select(0, index).to(ids.device)
    return found.view(*ids.shape, *pool.shape[2:])


@_on_card("norm_rope")
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / rms(x) * weight` over the last dim; see the reference."""
    normed = torch.nn.functional.rms_norm(x.to(weight.dtype), (x.shape[-1],), weight, eps)
    return normed.to(x.dtype)


@_on_card("norm_rope")
def add_rms_norm(
    x: Tensor,
    delta: Tensor,
    weight: Tensor | None,
    eps: float,
    behind: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """`x + scale * delta` and its `rms_norm`; see the reference."""
    if behind is not None:
        delta = rms_norm(delta, behind, eps)
    added = x + (delta if scale == 1.0 else delta * scale)
    return added, added if weight is None else rms_norm(added, weight, eps)


@_on_card("retrieval", lambda pool, late, order, *_: order)
def pq_fetch(
    pool: Tensor,
    late: tuple[Tensor, Tensor],
    order: Tensor,
    sinks: int,
    wanted: int,
    offset: Tensor | None = None,
    ends: Tensor | None = None,
) -> Tensor:
    """The entries that were chosen, copied side by side; see the reference."""
    return reference.pq_fetch(pool, late, order, sinks, wanted, offset, ends)


@_on_card("pq", lambda x, centroids: x if centroids.shape[2] <= 256 else None)
def pq_assign(x: Tensor, centroids: Tensor) -> Tensor:
    """Codes `[H, N, m]` of `x [H, N, D]`, in slices, so that the workspace is bounded."""
    step = max(1, MASS_VALUES // centroids[..., 0].numel())
    return torch.cat([reference.pq_assign(part, centroids) for part in x.split(step, dim=1)], dim=1)


@_on_card("pq")
def pq_score(table: Tensor, codes: Tensor) -> Tensor:
    """Logits `[H, G, N]` of coded entries; see the reference.

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


@_on_card("pq")
def pq_select(worth: Tensor, count: int) -> Tensor:
    """The `count` best entries of every head, ascending; see the reference.

    No sorting of all entries: the worth of the last one that fits divides them.
    """
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


def _narrow(q: Tensor, *_: object) -> Tensor | None:
    return q if q.shape[2] <= MAX_DIM else None


@_on_card("mass", _narrow)
def window_mass(
    q: Tensor, k: Tensor, lse: Tensor, seen: Tensor, scale: float, *, cap: float = 0.0
) -> Tensor:
    """Mean mass per key over queries and the heads of a group, `[H, N]`; see the reference."""
    mass = column_mass(q, k, lse, seen, scale, cap=cap).div_(len(q))
    return mass.view(len(k), -1, k.shape[1]).mean(dim=1)


@_on_card("mass", _narrow)
def column_mass(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    seen: Tensor,
    scale: float,
    power: int = 1,
    *,
    cap: float = 0.0,
) -> Tensor:
    """Mass per key from all queries together, `[H*G, N]`; see the reference.

    In torch keys are taken in slices: grouped queries meet unexpanded keys in one batched product
    per slice, so the workspace is `MASS_VALUES` logits whatever N is.
    """
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
        mass = (  # [H, G*W, n]
            reference.capped(torch.bmm(blocks, part), cap).add_(total)
            if cap
            else torch.baddbmm(total, blocks, part)
        )
        mass = (mass if power == 1 else mass.mul_(power)).exp_()
        mass = mass.view(heads, -1, window, part.shape[2])
        if a + step > first:
            hidden = torch.arange(a, a + part.shape[2], device=k.device) >= seen[:, None]
            mass.masked_fill_(hidden, 0.0)  # [W, n]
        torch.sum(mass, dim=2, out=out[:, :, a : a + step])
    return out.view(query_heads, entries)
