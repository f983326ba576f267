"""Entries that are found by clusters of their keys: Squeezed Attention, arXiv 2411.09688."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.attention.entries import Entries
from kvchat.engine.cache import AGGREGATES
from kvchat.engine.cache.cells import Cells
from kvchat.engine.cache.lookup import Reads, fields_of, named_fields, with_late
from kvchat.engine.cache.pq import PQSegment
from kvchat.kernels.reference import cell_worth


@dataclass(frozen=True)
class Level:
    """Clusters of clusters: `centroids [H, 1, K, D]` (fp32), to which of them each cluster belongs
    (`owner [H, C]`, int32), and what they must be worth (`bound [H]`, fp32)."""

    centroids: Tensor
    owner: Tensor
    bound: Tensor

    def sizes(self, count: Tensor) -> Tensor:
        """Entries `[H, K]` of each, if the clusters have `count [H, C]`."""
        heads, _, clusters, _ = self.centroids.shape
        return count.new_zeros(heads, clusters).scatter_add_(1, self.owner.long(), count)

    def closed(self, q: Tensor, scale: float, aggregate: str, count: Tensor) -> Tensor:
        """The clusters `[H, C]` (bool), of `count [H, C]` entries, that `q [H*G, D]` passes by."""
        table = ops.pq_table(q, self.centroids, scale)
        worth = cell_worth(table, self.sizes(count), aggregate)
        return (worth < self.bound[:, None]).gather(1, self.owner.long())


class ClusterSegment(PQSegment):
    """Entries of a document in clusters: codes of one part.

    `centroids [H, 1, C, D]` are means of keys, `codes [H, M, 1]` (int32) the cluster of each entry.
    One query reads the entries of all clusters that are worth `bound [H]` (fp32) or more to it,
    with a `coarse` level of those only whose owner is worth enough: so a head reads more for one
    query than for another.
    """

    kind: ClassVar[str] = "clusters"

    def __init__(
        self,
        pool: Tensor,
        centroids: Tensor,
        codes: Tensor,
        reads: Reads,
        start: int,
        bound: Tensor,
        coarse: Level | None = None,
        cells: Cells | None = None,
    ):
        super().__init__(pool, centroids, codes, reads, start, cells)
        self.bound, self.coarse = bound, coarse
        self.found = 0  # entries that all queries have read, over all heads

    @classmethod
    def load(cls, tensors: dict[str, Tensor], span: tuple[int, int]) -> "ClusterSegment":
        """The segment whose `tensors()` these are."""
        pool, centroids, codes = (tensors[name] for name in ("pool", "centroids", "codes"))
        reads, level = Reads(*tensors["reads"].tolist()), fields_of(Level, "coarse", tensors)
        cells, bound = fields_of(Cells, "cell", tensors), tensors["bound"]
        segment = cls(pool, centroids, codes, reads, span[0], bound, level, cells)
        return with_late(segment, tensors)

    def fork(self) -> "ClusterSegment":
        other = super().fork()
        other.found = 0
        return other

    @property
    def by_itself(self) -> bool:
        return False  # how many entries a head reads is known when they are chosen

    @property
    def read_entries(self) -> int:
        """On average, as soon as queries have chosen."""
        if not self.steps:
            return super().read_entries
        each = round(self.found / self.steps / len(self.pool))
        return self.reads.sinks + self.reads.window + each

    def choose(self, q: Tensor, scale: float) -> Tensor:
        """The entries of all clusters that are worth enough to `q [H*G, D]`."""
        cells, aggregate = self.cells, AGGREGATES[self.reads.aggregate]
        assert cells is not None
        if self.coarse is not None:
            cells = cells.without(self.coarse.closed(q, scale, aggregate, cells.count))
        table = ops.pq_table(q, self.centroids, scale)
        chosen, worth = cells.above(cells.worth(table, aggregate), self.bound)
        self.found += int((chosen >= 0).sum())
        self.chose(worth.mean() / table.shape[1])
        return chosen

    @property
    def index(self) -> dict[str, Tensor]:
        level = {} if self.coarse is None else named_fields(self.coarse, "coarse")
        return super().index | {"bound": self.bound} | level

    def _listed(self, codes: Tensor) -> Cells:
        return Cells.of(codes, self.centroids.shape[2])

    def _fetched(self, chosen: Tensor) -> Entries:
        counts = (self.reads.sinks + (chosen >= 0).sum(dim=1)).tolist()
        entries = super()._fetched(chosen.clamp(min=0))
        spans = tuple((a, n) for (a, _), n in zip(entries.spans, counts, strict=True))
        length = torch.tensor(counts, dtype=torch.int32, device=chosen.device)
        return replace(entries, spans=spans, length=length)
