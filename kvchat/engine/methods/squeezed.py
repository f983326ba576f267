"""Squeezed Attention: clusters of keys, and bounds that say which of them a token reads."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.budget import Geometry
from kvchat.engine.cache.cells import Cells
from kvchat.engine.cache.clusters import ClusterSegment, Level
from kvchat.engine.cache.lookup import Reads
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.kmeans import means, train
from kvchat.engine.methods.lookup import Lookup
from kvchat.engine.methods.lookup_options import SqueezedOptions
from kvchat.engine.methods.needs import Needs
from kvchat.engine.peers import ALONE, Peers
from kvchat.kernels.reference import cell_worth

WIDE = 2  # times the entries that are wanted pass the first of two levels


@dataclass(frozen=True)
class Squeezed(SqueezedOptions, Lookup):
    """Keeps every entry; a token reads those of clusters whose centroid is worth enough to it.

    Squeezed Attention: Accelerating Long Context Length LLM Inference,
    https://arxiv.org/abs/2411.09688. Keys are clustered by direction; a centroid is the mean of
    keys as they are. A cluster is worth the attention that an entry at its centroid would get of a
    query. A bound is chosen by the last `window` queries, so that they read the budget on average,
    centroids included; later ones read as much as they need. With `levels=2` clusters are clustered
    once more, and only those in a cluster that is worth enough are compared. Different here: a
    bound of each layer or head, met by each observed query's own worths, where the authors have one
    for all, a quantile of worths on the mean of these queries; the queries of a KV head agree
    (`aggregate`); sinks and a window of the newest entries are read in any case (not by `paper`),
    and what leaves the window joins the nearest cluster; K-means begins with drawn keys.
    """

    @property
    def needs(self) -> Needs:
        """The queries by which bounds are set."""
        return Needs(queries=self.window)

    segments = ClusterSegment

    @property
    def least(self) -> int:
        return 2

    def centroids(self, each: int, geometry: Geometry) -> int:
        """Clusters of a head, if a token may read `each` entries: their centroids are at most a
        third of that."""
        most = each / 3 / self._price(geometry)
        return max(1, min(round(self.clusters * geometry.tokens), int(most)))

    def index_entries(self, each: int, geometry: Geometry) -> int:
        """Its centroids, in fp32."""
        if self.budget.entries(geometry) >= geometry.full:
            return 0
        return int(self.centroids(each, geometry) * self._price(geometry))

    def _price(self, geometry: Geometry) -> float:
        """Bytes of a centroid in those of an entry."""
        return 4 / (2 * geometry.itemsize)

    def index(self, prefilled: Prefilled, coded: int, reads: Reads) -> ClusterSegment:
        keys, values = prefilled.keys[:, :coded], prefilled.values[:, :coded]
        middle = keys[:, reads.sinks :]
        geometry = prefilled.geometry
        each = self.budget.entries(geometry) // geometry.heads
        number = self.centroids(each, geometry)
        peers = prefilled.peers
        centroids, codes = self._clustered(middle, number, peers)
        cells, level = Cells.of(codes, centroids.shape[2]), None
        closed = torch.zeros_like(cells.count, dtype=torch.bool)[None]
        if self.levels == 2:
            upper = round(self.coarse / self.clusters * number)
            coarse, owner = self._clustered(centroids[:, 0], upper, peers)
            level = Level(coarse, owner[..., 0], cells.count.new_zeros(len(keys)))
            sizes = level.sizes(cells.count)
            worth = self._worth(prefilled, coarse, sizes.expand(len(prefilled.queries), -1, -1))
            bound = self._bound(worth, sizes, WIDE * reads.count, peers)
            level = Level(coarse, owner[..., 0], bound)
            passed = worth >= bound[:, None]
            closed = ~passed.gather(2, level.owner.long().expand(len(worth), -1, -1))
        count = cells.count.masked_fill(closed, 0.0).expand(len(prefilled.queries), -1, -1)
        worth = self._worth(prefilled, centroids, count).masked_fill(count == 0, 0.0)
        bound = self._bound(worth, cells.count, reads.count, peers)
        pool = self.stored_at_home(prefilled, keys, values)
        start = prefilled.start
        return ClusterSegment(pool, centroids, codes, reads, start, bound, level, cells)

    def _clustered(self, keys: Tensor, count: int, peers: Peers = ALONE) -> tuple[Tensor, Tensor]:
        """`count` clusters of keys `[H, N, D]` by direction, 2 to N: their means `[H, 1, C, D]`
        (fp32) and the cluster of each key `[H, N, 1]` (int32)."""
        count = min(max(2, count), keys.shape[1])
        turned = torch.nn.functional.normalize(keys.float(), dim=-1)
        found = train(turned, 1, count, self.iters, self.seed, peers)
        codes = ops.pq_assign(turned, found)
        return means(keys.float()[:, None], codes, found), codes.int()

    def _worth(self, prefilled: Prefilled, centroids: Tensor, count: Tensor) -> Tensor:
        """What entries of clusters are worth to each observed query, `[W, H, C]`.

        `count [W, H, C]` are the entries that the query may choose from.
        """
        aggregate, scale = self.aggregate, prefilled.scale
        tables = (ops.pq_table(q, centroids, scale) for q in prefilled.queries)
        return torch.stack(
            [cell_worth(t, n, aggregate) for t, n in zip(tables, count, strict=True)]
        )

    def _bound(self, worth: Tensor, count: Tensor, wanted: int, peers: Peers = ALONE) -> Tensor:
        """What a cluster must be worth `[H]`, so that on average a query passes `wanted` entries.

        `worth [W, H, C]` to each of W queries, of clusters with `count [H, C]` entries.
        """
        if self.per == "layer":
            worth, count = peers.joined(worth, 1), peers.joined(count)
        queries, heads, _ = worth.shape
        sizes = count.expand(queries, -1, -1).transpose(0, 1).flatten(1)  # [H, W * C]
        table, together = worth.transpose(0, 1).flatten(1), 1
        if self.per == "layer":
            table, sizes, together = table.reshape(1, -1), sizes.reshape(1, -1), heads
        best, order = torch.sort(table, dim=1, descending=True)
        passed = sizes.gather(1, order).cumsum(dim=1, dtype=torch.float64)
        last = (passed <= wanted * queries * together).sum(dim=1, keepdim=True) - 1
        found = best.gather(1, last.clamp(min=0))[:, 0].repeat(together)
        return peers.own(found) if self.per == "layer" else found
