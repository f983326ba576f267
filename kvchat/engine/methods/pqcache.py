"""PQCache: every entry is kept; codes of the keys say which ones a query has to read."""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.budget import Geometry
from kvchat.engine.cache import AGGREGATES
from kvchat.engine.cache.pq import PQSegment, Reads
from kvchat.engine.cache.scratch import scratch
from kvchat.engine.cache.segment import Segment
from kvchat.engine.methods.base import Method, Prefilled
from kvchat.engine.methods.options import PQCacheOptions
from kvchat.engine.sizes import PER_CENTROID
from kvchat.errors import KvchatError

SETTLED = 0.005  # K-means ends when fewer codes than this share change


@dataclass(frozen=True)
class PQCache(PQCacheOptions, Method):
    """Keeps every entry, and lets a code of each key say which entries a decoded token reads.

    PQCache: Product Quantization-based KVCache for Long Context LLM Inference,
    https://arxiv.org/abs/2407.12820. The budget is what a token reads: `sinks`, a window of the
    newest entries (`recent` of the rest, at most `most_recent` entries) and the entries whose codes
    score best. Codes are `m` parts of `code_bits` bits, trained by K-means. Entries leave the
    window `block` at a time. Questions, several tokens at once, read every entry. Different here:
    the budget pays for the sinks (`extra_sinks=true` does not), K-means has a fixed number of
    iterations on the device that reads, and the first `dense_layers` layers and documents with
    fewer than `dense_below` entries to choose from are read in full.
    """

    retrieves: ClassVar[bool] = True

    def entries(self, geometry: Geometry) -> list[int]:
        """All of them. Raises KvchatError("usage") if nothing could be read or coded."""
        self.shares(geometry)
        if geometry.dim % self.m:
            fitting = [f"m={m}" for m in (1, 2, 4, 8, 16) if geometry.dim % m == 0]
            raise KvchatError(
                "usage", f"pqcache: m={self.m} parts of a head of {geometry.dim}", *fitting
            )
        return [geometry.full] * geometry.layers

    def shares(self, geometry: Geometry) -> Reads:
        """How the entries that a token reads of a head are shared out."""
        tokens, sinks = geometry.tokens, self.sinks
        each = self.budget.entries(geometry) // geometry.heads
        if self.extra_sinks:
            sinks = min(sinks, tokens - 1)
            beside = replace(geometry, tokens=tokens - sinks)
            each = self.budget.entries(beside) // geometry.heads
        else:
            sinks = min(sinks, each // 2)
            each -= sinks
        near = Fraction(self.recent).limit_denominator(10**6)
        window = min(int(each * near), self.most_recent)
        count = int(each * (1 - near)) if self.extra_sinks else each - window
        aggregate = AGGREGATES.index(self.aggregate)
        return Reads(sinks, window, count, self.block, aggregate)

    def compress(self, prefilled: Prefilled) -> Segment:
        """All entries but those of the window, coded."""
        if prefilled.layer < self.dense_layers or self._dense(prefilled.geometry):
            return prefilled.keep_all()
        reads = self.shares(prefilled.geometry)
        coded = prefilled.shape[1] - reads.window
        keys, values = prefilled.keys[:, :coded], prefilled.values[:, :coded]
        middle = keys[:, reads.sinks :]
        centroids = train(middle, self.m, 2**self.code_bits, self.iters, self.seed)
        codes = ops.pq_assign(middle, centroids)
        pool = self._pool(keys, values, prefilled.num_layers - prefilled.layer)
        return PQSegment(pool, centroids, codes, reads, prefilled.start)

    def _dense(self, geometry: Geometry) -> bool:
        """Whether there is too little to choose from."""
        reads = self.shares(geometry)
        middle = geometry.tokens - reads.sinks - reads.window
        return middle < max(self.dense_below, 2**self.code_bits) or reads.count >= middle

    def _pool(self, keys: Tensor, values: Tensor, layers: int) -> Tensor:
        """Keys and values `[H, N, D]` side by side, on the device, in pinned host memory or in a
        file that is mapped.

        `auto`: on the device as long as it has room for the `layers` that are left.
        """
        heads, entries, dim = keys.shape
        device, pinned = keys.device, False
        if self.home == "disk":
            return put(scratch((heads, entries, 2 * dim), keys.dtype), keys, values)
        if device.type == "cuda" and self.home != "device":
            free = torch.cuda.mem_get_info(device)[0]
            pinned = self.home == "host" or free < 2 * keys.nbytes * layers
        place = torch.device("cpu") if pinned else device
        pool = torch.empty(
            heads, entries, 2 * dim, dtype=keys.dtype, device=place, pin_memory=pinned
        )
        return put(pool, keys, values)


def put(pool: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Write keys and values `[H, N, D]` into a pool `[H, N, 2D]`."""
    dim = keys.shape[2]
    pool[..., :dim] = keys
    pool[..., dim:] = values
    return pool


def train(keys: Tensor, subspaces: int, centroids: int, iters: int, seed: int) -> Tensor:
    """Centroids `[H, m, C, d]` (fp32) of `keys [H, N, D]`: m `subspaces` of C `centroids`, N at
    least C.

    Lloyd's iterations in L2, on at most 256 * C sampled entries, from C of them that are drawn
    without replacement, the same for all heads and sub-spaces. Means are fp32 and added up in entry
    order, so the same seed gives the same centroids. An empty cluster keeps its centroid. Ends
    early when under 0.5 % of the codes change.
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
        if before is not None and int((codes != before).sum()) < SETTLED * codes.numel():
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
    sums = torch.nn.functional.embedding_bag(
        order, parts.reshape(-1, dim), size.cumsum(dim=0) - size, mode="sum"
    )
    mean = sums / size.clamp(min=1)[:, None]
    return torch.where(size[:, None] > 0, mean, centroids.reshape(-1, dim)).view_as(centroids)
