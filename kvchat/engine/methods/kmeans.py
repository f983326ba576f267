"""K-means of keys, the same every time."""

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.peers import ALONE, Peers
from kvchat.engine.sizes import PER_CENTROID

SETTLED = 0.005  # K-means ends when fewer codes than this share change


def train(
    keys: Tensor, subspaces: int, centroids: int, iters: int, seed: int, peers: Peers = ALONE
) -> Tensor:
    """Centroids `[H, m, C, d]` (fp32) of `keys [H, N, D]`: m `subspaces` of C `centroids`, N at
    least C.

    Lloyd's iterations in L2, on at most 256 * C sampled entries, from C of them that are drawn
    without replacement, the same for all heads and sub-spaces. Means are fp32 and added up in entry
    order, so the same seed gives the same centroids. An empty cluster keeps its centroid. Ends
    early when under 0.5 % of the codes of all `peers` change.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(keys.shape[1], generator=generator)[: PER_CENTROID * centroids]
    first = torch.randperm(len(drawn), generator=generator)[:centroids].sort().values
    entries = keys[:, drawn.sort().values.to(keys.device)].float()
    heads, count, _ = entries.shape
    parts = entries.view(heads, count, subspaces, -1).transpose(1, 2)  # [H, m, n, d]
    found = parts[:, :, first.to(keys.device)]
    before = None
    for _ in range(iters):
        codes = ops.pq_assign(entries, found)
        if before is not None:
            changed = int(peers.added((codes != before).sum()))
            if changed < SETTLED * codes.numel() * peers.count:
                break
        found, before = means(parts, codes, found), codes
    return found


def means(parts: Tensor, codes: Tensor, centroids: Tensor) -> Tensor:
    """The means `[H, m, C, d]` of the entries of `parts [H, m, n, d]` with each code `[H, n, m]`.

    A cluster without entries keeps its centroid.
    """
    heads, subspaces, count, dim = centroids.shape
    every = heads * subspaces * count
    base = torch.arange(0, every, count, device=codes.device).view(heads, subspaces, 1)
    cluster = (codes.transpose(1, 2).long() + base).flatten()
    size = torch.bincount(cluster, minlength=every)
    order = torch.argsort(cluster, stable=True)  # the entries of one cluster after the other
    sums = summed(parts.reshape(-1, dim), order, size.cumsum(dim=0) - size)
    mean = sums / size.clamp(min=1)[:, None]
    return torch.where(size[:, None] > 0, mean, centroids.reshape(-1, dim)).view_as(centroids)


def summed(rows: Tensor, order: Tensor, begins: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sums `[C, D]` of `rows [N, D]` (fp32) at `order [n]`, from each of `begins [C]` to the next,
    times `weights [n]` if there are any; 0 of no rows. Added up in order, on a card too."""
    return torch.nn.functional.embedding_bag(
        order, rows, begins, mode="sum", per_sample_weights=weights
    )
