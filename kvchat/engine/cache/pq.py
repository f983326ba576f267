"""Entries that are found by a product-quantized code of their keys: PQCache, arXiv 2407.12820."""

from typing import ClassVar

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.attention.entries import Entries
from kvchat.engine.cache import AGGREGATES
from kvchat.engine.cache.cells import Cells
from kvchat.engine.cache.lookup import LookupSegment, Reads, fields_of, named_fields, with_late
from kvchat.engine.sizes import LISTED

Index = tuple[Tensor, Cells | None]


class PQSegment(LookupSegment):
    """Entries of a document, with a code of every key but the sinks'.

    `centroids [H, m, C, d]` (fp32) and `codes [H, M, m]` (uint8) are where queries are; `cells` is
    the inverted list of a small code book. Codes of entries that left the window later are the
    last of `codes`. One query reads the `reads.count` entries that its codes rank highest.
    """

    kind: ClassVar[str] = "pq"

    def __init__(
        self,
        pool: Tensor,
        centroids: Tensor,
        codes: Tensor,
        reads: Reads,
        start: int,
        cells: Cells | None = None,
    ):
        super().__init__(pool, reads, start, pool.shape[2] // 2, codes.device)
        self.centroids, self.codes = centroids, codes
        self.cells = self._listed(codes) if cells is None else cells

    @classmethod
    def load(cls, tensors: dict[str, Tensor], span: tuple[int, int]) -> "PQSegment":
        """The segment whose `tensors()` these are."""
        pool, centroids, codes = (tensors[name] for name in ("pool", "centroids", "codes"))
        reads, cells = Reads(*tensors["reads"].tolist()), fields_of(Cells, "cell", tensors)
        return with_late(cls(pool, centroids, codes, reads, span[0], cells), tensors)

    def indexed(self, k: Tensor) -> Index:
        new = ops.pq_assign(k, self.centroids).to(self.codes.dtype)
        codes = torch.cat((self.codes, new), dim=1)
        cells = self.cells
        if cells is not None:
            cells = cells.extended(codes, k.shape[1], self.centroids.shape[2])
        return codes, cells

    def take(self, index: Index) -> None:
        self.codes, self.cells = index

    def forget(self, entries: int) -> None:
        codes = self.codes[:, : self.codes.shape[1] - entries].clone()
        self.cells = self._listed(codes)
        self.codes = codes

    def choose(self, q: Tensor, scale: float) -> Tensor:
        """The `reads.count` entries of each head that are worth most to `q [H*G, D]`."""
        table = ops.pq_table(q, self.centroids, scale)
        aggregate, count = AGGREGATES[self.reads.aggregate], self.reads.count
        if self.cells is not None:
            chosen, worth = self.cells.select(self.cells.worth(table, aggregate), count)
        else:
            each = ops.pq_worth(ops.pq_score(table, self.codes), aggregate)
            chosen = ops.pq_select(each, count)
            worth = each.gather(1, chosen.long()).sum(dim=1)
        self.chose(worth.mean() / table.shape[1])
        return chosen

    @property
    def by_itself(self) -> bool:
        reached = self.pool.device == self.codes.device or self.pool.is_pinned()
        return reached and self.reads.count < self.items

    def entries_for(self, q: Tensor, scale: float) -> Entries:
        if self.cells is not None and self.cells.pending.shape[1]:
            self.cells = self._listed(self.codes)  # the list alone is looked into
        cells, reads, state = self.cells, self.reads, self.state(len(q))
        book, aggregate = self.centroids, AGGREGATES[reads.aggregate]
        given = self.pool, (self.late.keys, self.late.values)
        if cells is not None:
            ends = ops.pq_rank(q, book, cells.count, reads.count, scale, aggregate, state)
            listed = cells.offset, ends
            copied = ops.pq_fetch(*given, cells.order, reads.sinks, reads.count, *listed)
        else:
            scores = ops.pq_score(ops.pq_table(q, book, scale), self.codes)
            worth = ops.pq_worth(scores, aggregate)
            chosen = ops.pq_select(worth, reads.count)
            state[:-1] += worth.gather(1, chosen.long()).sum(dim=1)
            state[-1:] += 1
            copied = ops.pq_fetch(*given, chosen, reads.sinks, reads.count)
        flat, (start, length, spans) = copied.flatten(0, 1), self._places
        width = flat.shape[1] // 2
        return Entries(flat[:, :width], flat[:, width:], start, length, spans)

    @property
    def index(self) -> dict[str, Tensor]:
        named = {"centroids": self.centroids, "codes": self.codes}
        if self.cells is not None:
            named |= named_fields(self.cells, "cell")
        return named

    def _listed(self, codes: Tensor) -> Cells | None:
        centroids, subspaces = self.centroids.shape[2], codes.shape[2]
        return Cells.of(codes, centroids) if centroids**subspaces <= LISTED else None
