"""Code books of product quantisation: K-means of the keys, all heads and sub-spaces of a layer at
once. Knows no method.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.sizes import PER_CENTROID

SETTLED = 0.005  # K-means ends when fewer codes than this share change


@dataclass(frozen=True)
class Training:
    """How a code book is trained: m `subspaces` of C `centroids`, at most `iters` iterations."""

    subspaces: int
    centroids: int
    iters: int
    seed: int


def train(keys: Tensor, training: Training) -> Tensor:
    """Centroids `[H, m, C, d]` (fp32) of `keys [H, N, D]`, N at least C.

    Lloyd's iterations in L2, on at most 256 * C sampled entries, from C of them that are drawn
    without replacement, the same for all heads and sub-spaces. Means are fp32 and added up in entry
    order, so the same seed gives the same centroids. An empty cluster keeps its centroid. Ends
    early when under 0.5 % of the codes change.
    """
    generator = torch.Generator().manual_seed(training.seed)
    count = training.centroids
    drawn = torch.randperm(keys.shape[1], generator=generator)[: PER_CENTROID * count]
    first = torch.randperm(len(drawn), generator=generator)[:count].sort().values
    entries = keys[:, drawn.sort().values.to(keys.device)].float()
    parts = entries.unflatten(2, (training.subspaces, -1)).transpose(1, 2)  # [H, m, n, d]
    centroids = parts[:, :, first.to(keys.device)]
    before = None
    for _ in range(training.iters):
        codes = ops.pq_assign(entries, centroids)
        if before is not None and int((codes != before).sum()) < SETTLED * codes.numel():
            break
        centroids, before = means(parts, codes, centroids), codes
    return centroids


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
    sums = torch.nn.functional.embedding_bag(
        order, parts.reshape(-1, dim), size.cumsum(dim=0) - size, mode="sum"
    )
    mean = sums / size.clamp(min=1)[:, None]
    return torch.where(size[:, None] > 0, mean, centroids.reshape(-1, dim)).view_as(centroids)


def squared_error(keys: Tensor, codes: Tensor, centroids: Tensor) -> float:
    """The mean squared distance of `keys [H, N, D]` from what their codes stand for."""
    return float((keys.float() - ops.pq_decode(codes, centroids)).square().sum(dim=-1).mean())
