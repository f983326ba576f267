"""Scores per entry, shared by methods."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.sizes import MASS_VALUES
from kvchat.kernels.reference import capped

# Values of the projected entries that `projected_norm` has alive at once.
NORM_VALUES = 2**22


def observed_mass(prefilled: Prefilled, entries: int, power: int = 1) -> Tensor:
    """Attention mass of the first `entries` keys by query head, `[H*G, entries]` fp32.

    Mean over the observation queries (SnapKV, arXiv 2404.14469). A head's masses sum to what its
    queries do not spend on later entries; they are not renormalised, for Ada-KV compares heads by
    them.
    """
    mass = ops.column_mass(
        prefilled.queries,
        prefilled.keys[:, :entries],
        prefilled.lse,
        prefilled.seen,
        prefilled.scale,
        power,
        cap=prefilled.cap,
    )
    mass /= len(prefilled.queries)
    if prefilled.absent is not None:  # what is not there spreads nothing when it is pooled
        exists = prefilled.exists[:, :entries].repeat_interleave(
            len(mass) // len(prefilled.keys), 0
        )
        mass.masked_fill_(~exists, 0.0)
    return mass


def group_mass(prefilled: Prefilled, entries: int) -> Tensor:
    """Observed mass of the first `entries` keys, mean over a group's heads, `[H, entries]`."""
    mass = ops.window_mass(
        prefilled.queries,
        prefilled.keys[:, :entries],
        prefilled.lse,
        prefilled.seen,
        prefilled.scale,
        cap=prefilled.cap,
    )
    return (
        mass if prefilled.absent is None else mass.masked_fill_(~prefilled.exists[:, :entries], 0.0)
    )


def by_head(scores: Tensor, heads: int) -> Tensor:
    """Mean over the query heads of a KV head: `[H*G, N]` to `[H, N]`."""
    return scores.view(heads, len(scores) // heads, scores.shape[1]).mean(dim=1)


def pooled_mass(prefilled: Prefilled, entries: int, kernel: int, kind: str, score: str) -> Tensor:
    """Observed mass, smoothed along tokens, `[H, entries]`.

    Attention is averaged over the group and then pooled, as in Ada-KV; squared attention is pooled
    per query head first, as in KV-Compress (arXiv 2410.00161).
    """
    heads, _ = prefilled.shape
    if score == "squared":
        return by_head(pool(observed_mass(prefilled, entries, power=2), kernel, kind), heads)
    return pool(group_mass(prefilled, entries), kernel, kind)


def most_mass(prefilled: Prefilled, entries: int, shares: bool = False) -> Tensor:
    """The most attention that any observation query of a KV head gives to an entry, `[H, entries]`.

    With `shares` in even shares of what the query sees, of which there are `seen` (CORM,
    arXiv 2404.15949): 1 is an even share.
    """
    heads, _ = prefilled.shape
    window, query_heads, dim = prefilled.queries.shape
    q = prefilled.queries.float().view(window, heads, -1, dim) * prefilled.scale
    lse = prefilled.lse.view(window, heads, -1, 1)
    if shares:
        lse = lse - prefilled.seen.log()[:, None, None, None]
    step, best = max(1, MASS_VALUES // (window * query_heads)), []
    for a in range(0, entries, step):
        keys = prefilled.keys[:, a : min(a + step, entries)].float()
        logits = capped(torch.einsum("whgd,hnd->whgn", q, keys), prefilled.cap) - lse
        at = torch.arange(a, a + keys.shape[1], device=q.device)
        logits.masked_fill_((at >= prefilled.seen[:, None])[:, None, None], -torch.inf)
        best.append(logits.amax(dim=(0, 2)).exp())
    found = torch.cat(best, dim=1) if best else q.new_zeros(heads, 0)
    return found.masked_fill(~prefilled.exists[:, :entries], 0.0)


def defensive_mass(prefilled: Prefilled, entries: int, kernel: int) -> Tensor:
    """The worst case over observation queries and query heads, `[H, entries]` (DefensiveKV).

    Each query's attention is average-pooled and scaled back to the mass it had; the largest of all
    queries of a KV head counts, and at least the head's mean of these.
    """
    heads, _ = prefilled.shape
    q, window = prefilled.queries, len(prefilled.queries)
    group = q.shape[1] // heads
    exists = prefilled.exists[:, :entries]
    out = []
    for head in range(heads):
        block = q[:, head * group : (head + 1) * group]  # [W, G, D]
        logits = torch.einsum(
            "wgd,nd->wgn", block.float(), prefilled.keys[head, :entries].float()
        )  # [W, G, N]
        logits = capped(logits * prefilled.scale, prefilled.cap)
        mass = torch.exp(logits - prefilled.lse[:, head * group : (head + 1) * group, None])
        seen = torch.arange(entries, device=q.device) < prefilled.seen[:, None]
        mass.masked_fill_(~(seen & exists[head])[:, None], 0.0)
        smooth = pool(mass.view(window * group, entries), kernel, "avg").view_as(mass)
        keep = mass.sum(dim=-1, keepdim=True) / smooth.sum(dim=-1, keepdim=True).clamp_min(1e-30)
        worst = (smooth * keep).amax(dim=(0, 1))
        worst *= exists[head]
        out.append(worst.clamp_min(worst.sum() / exists[head].sum().clamp_min(1)))
    return torch.stack(out)


def projected_norm(prefilled: Prefilled, entries: int) -> Tensor:
    """L1 norm of the value entries behind the output projection, `[H, entries]` fp32.

    `|v_j O_h|_1`, mean over the query heads of a KV head: what an entry can change in the layer's
    output (CriticalKV, arXiv 2502.03805).
    """
    assert prefilled.output is not None, "the prefill gives the output projection"
    heads, _ = prefilled.shape
    _, dim, hidden = prefilled.output.shape
    by_group = prefilled.output.view(heads, -1, dim, hidden)
    step = max(1, NORM_VALUES // (hidden * by_group.shape[1]))
    norms = [
        torch.einsum("nd,gdm->gnm", part.float(), by_group[head].float()).abs().sum(-1).mean(0)
        for head in range(heads)
        for part in torch.split(prefilled.values[head, :entries], step)
    ]
    return (
        torch.cat(norms).view(heads, entries) if entries else prefilled.values.new_zeros(heads, 0)
    )


def pool(scores: Tensor, kernel: int, kind: str) -> Tensor:
    """Smooth `scores [H, N]` along tokens, stride 1, odd `kernel` (SnapKV's clustering).

    `max` pads with -inf; `avg` counts zero padding, which damps the edges.
    """
    if kernel == 1 or scores.shape[1] == 0:
        return scores
    if kind == "max":
        return F.max_pool1d(scores[None], kernel, stride=1, padding=kernel // 2)[0]
    return F.avg_pool1d(scores[None], kernel, stride=1, padding=kernel // 2)[0]


def ranked(scores: Tensor) -> Tensor:
    """Entry numbers by falling score, `[H, N]` int64; among equals the earlier entry first."""
    return torch.sort(scores, dim=1, descending=True, stable=True).indices
