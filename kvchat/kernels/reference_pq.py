"""Twins of the kernels that choose entries: codes, their worth, the best, and how they are fetched.

Letters as in `kernels/reference.py`.
"""

import torch
from torch import Tensor

NEGATIVE = float("-inf")


def gather_entries(pool: Tensor, ids: Tensor) -> Tensor:
    """Entries `ids [H, k]` (int32) of `pool [H, capacity, ...]`: `[H, k, ...]` where `ids` are.

    The pool may be memory of the host.
    """
    heads = torch.arange(len(pool), device=pool.device)[:, None]
    return pool[heads, ids.to(pool.device, torch.int64)].to(ids.device)


def pq_assign(x: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid of every sub-vector: `x [H, N, D]` to codes `[H, N, m]`.

    `centroids [H, m, C, d]` with `m * d = D`; codes are uint8 for C up to 256, else int32. The
    nearest in L2 is the argmax of `x . c - |c|^2 / 2`, in fp32; of equal ones the first (PQCache,
    arXiv 2407.12820).
    """
    parts = x.float().unflatten(-1, (centroids.shape[1], -1)).transpose(1, 2)  # [H, m, N, d]
    wide = centroids.float()
    scores = parts @ wide.transpose(2, 3) - wide.square().sum(dim=-1)[:, :, None] / 2
    kind = torch.uint8 if centroids.shape[2] <= 256 else torch.int32
    return scores.argmax(dim=-1).transpose(1, 2).to(kind).contiguous()


def pq_decode(codes: Tensor, centroids: Tensor) -> Tensor:
    """What codes `[H, N, m]` stand for: their centroids side by side, `[H, N, D]`."""
    heads, subspaces = centroids.shape[:2]
    head = torch.arange(heads, device=codes.device)[:, None, None]
    subspace = torch.arange(subspaces, device=codes.device)
    return centroids[head, subspace, codes.long()].flatten(2)


def pq_table(q: Tensor, centroids: Tensor, scale: float) -> Tensor:
    """Scaled products of queries and centroids: `q [H*G, D]` of one token to `[H, G, m, C]`, fp32.

    `centroids [H, m, C, d]`; entry `[h, g, j, c]` is `scale * q_j . centroid[h, j, c]`.
    """
    heads, subspaces = centroids.shape[:2]
    parts = q.float().view(heads, -1, subspaces, centroids.shape[3])  # [H, G, m, d]
    return torch.einsum("hgjd,hjcd->hgjc", parts * scale, centroids.float())


def pq_score(table: Tensor, codes: Tensor) -> Tensor:
    """Approximate logits `[H, G, N]` (fp32) of coded entries: sums of table entries.

    `table [H, G, m, C]` fp32, `codes [H, N, m]` uint8 (any stride over N). Equal to
    `scale * q . decoded entry`; ADC of product quantization (Jegou et al., 2011).
    """
    subspaces = torch.arange(codes.shape[2], device=codes.device)[:, None]
    entries = [
        part[:, subspaces, code.T.long()].sum(dim=1)
        for part, code in zip(table, codes, strict=True)
    ]
    return torch.stack(entries)  # of each head [G, m, N] to [G, N]


def pq_worth(scores: Tensor, aggregate: str) -> Tensor:
    """What an entry is worth to the queries of its group: logits `[H, G, N]` to `[H, N]`, fp32.

    `softmax_sum` adds up the attention over the N entries, `max` takes the largest, `logit_sum`
    adds up the logits themselves.
    """
    if aggregate == "logit_sum":
        return scores.sum(dim=1)
    attention = torch.softmax(scores, dim=-1)
    return attention.sum(dim=1) if aggregate == "softmax_sum" else attention.amax(dim=1)


def pq_select(worth: Tensor, count: int) -> Tensor:
    """The `count` best entries of every head: `worth [H, N]` to entry numbers `[H, count]`,
    ascending.

    Of entries of equal worth the lower number is chosen. int32.
    """
    best = torch.sort(worth, dim=1, descending=True, stable=True).indices[:, :count]
    return torch.sort(best, dim=1).values.to(torch.int32)


def cell_worth(table: Tensor, count: Tensor, aggregate: str) -> Tensor:
    """What an entry of each joint code is worth, `[H, C^m]`: `pq_worth` of its entries' scores.

    `table [H, G, m, C]` as in `pq_table`, `count [H, C^m]` (fp32) are the entries with each code.
    """
    heads, group = table.shape[:2]
    logits = table[:, :, 0]
    for part in table.unbind(dim=2)[1:]:
        logits = (logits[..., None] + part[:, :, None]).view(heads, group, -1)
    if aggregate == "logit_sum":
        return logits.sum(dim=1)
    logits = logits + torch.where(count == 0, NEGATIVE, 0.0)[:, None]
    share = (logits - logits.amax(dim=-1, keepdim=True)).exp_()  # [H, G, cells]
    total = share @ count[:, :, None]  # [H, G, 1]
    if aggregate == "softmax_sum":
        return (1 / total).transpose(1, 2).matmul(share)[:, 0]
    return (share / total).amax(dim=1)


def pq_rank(
    q: Tensor,
    centroids: Tensor,
    count: Tensor,
    wanted: int,
    scale: float,
    aggregate: str,
    state: Tensor,
) -> Tensor:
    """The `wanted` entries of every head that one token takes, by their cells: nobody waits.

    `q [H*G, D]`, `centroids [H, m, C, d]`, `count [H, C^m]` (fp32) the entries of each cell. Whole
    cells are taken from the best one on, and of the last one, or those of equal worth, what is
    missing. Returns `[H, C^m]` int32: how many are taken of the cells up to each, itself
    included. What the taken entries are worth is added to `state [H + 1]` (fp32), and 1 to its end.
    """
    worth = cell_worth(pq_table(q, centroids, scale), count, aggregate)
    present = worth.masked_fill(count == 0, NEGATIVE)
    value, cell = torch.sort(present, dim=1, descending=True, stable=True)
    size = count.gather(1, cell)
    missing = wanted - (size.cumsum(dim=1) - size)
    taken = torch.minimum(missing.clamp_min(0), size)
    state[:-1] += torch.where(taken > 0, taken * value, 0.0).sum(dim=1)
    state[-1:] += 1
    return torch.zeros_like(size).scatter_(1, cell, taken).cumsum(dim=1).int()


def pq_fetch(
    pool: Tensor,
    late: tuple[Tensor, Tensor],
    order: Tensor,
    sinks: int,
    wanted: int,
    offset: Tensor | None = None,
    ends: Tensor | None = None,
) -> Tensor:
    """The first `sinks` entries of every head and `wanted` others, side by side.

    `pool [H, N, 2D]` has key and value of an entry side by side; those from N on are in `late`,
    `[H, n, D]` each. `order [H, M]` (int32) numbers entries behind the sinks: the first `wanted`
    are taken; or, where it lists the entries of each cell, which begin at `offset [H, C^m + 1]`
    (int32), those that `ends [H, C^m]` of `pq_rank` says. Returns `[H, sinks + wanted, 2D]`.
    """
    heads, entries, width = pool.shape
    chosen = order[:, :wanted]
    if offset is not None and ends is not None:
        slot = torch.arange(wanted, dtype=torch.int32, device=ends.device).expand(heads, -1)
        cell = torch.searchsorted(ends, slot.contiguous(), right=True)
        begin = torch.nn.functional.pad(ends, (1, 0)).gather(1, cell)
        chosen = order.gather(1, (offset.gather(1, cell) + slot - begin).long())
    first = torch.arange(sinks, dtype=torch.int32, device=order.device).expand(heads, -1)
    ids = torch.cat((first, chosen + sinks), dim=1).long()
    found = gather_entries(pool, ids.clamp(max=entries - 1))
    if late[0].shape[1] == 0:
        return found
    at = (ids - entries).clamp_min(0)[..., None].expand(-1, -1, width // 2)
    beyond = torch.cat([store.gather(1, at) for store in late], dim=2)
    return torch.where((ids >= entries)[..., None], beyond, found)
