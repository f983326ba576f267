"""A segment of which each decoded token reads the entries it needs: PQCache, arXiv 2407.12820."""

from dataclasses import astuple, dataclass, fields
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.attention.entries import Backend, Entries
from kvchat.engine.cache import AGGREGATES
from kvchat.engine.cache.cells import Cells
from kvchat.engine.cache.scratch import in_file
from kvchat.engine.cache.segment import Memory, even_entries
from kvchat.engine.cache.tail import Tail
from kvchat.engine.sizes import LISTED

SLICE = 16384  # entries per head that a pool in host memory sends to the device at a time


@dataclass(frozen=True)
class Reads:
    """What one query reads: the first `sinks` entries, the `window` newest, `count` of the others.

    Entries leave the window `block` at a time. `aggregate` numbers, in `AGGREGATES`, how the
    queries of a group agree on entries.
    """

    sinks: int
    window: int
    count: int
    block: int
    aggregate: int = 0


class PQSegment:
    """Entries of a document in a pool, with a product-quantized code of every key but the sinks'.

    It slides: entries leave the window in front of which it stands, that of the tail, into it.

    `pool [H, N, 2D]` has key and value of an entry side by side; it may be in host memory and never
    changes. `centroids [H, m, C, d]` (fp32) and `codes [H, M, m]` (uint8) are where queries are;
    `cells` is the inverted list of a small code book. Entries that left the window later are in
    `late`, their codes the last of `codes`. One query attends to the sinks and to the `reads.count`
    entries that its codes rank highest; several queries at once attend to every entry.
    """

    kind: ClassVar[str] = "pq"
    parts: ClassVar[None] = None  # queries choose

    def __init__(
        self,
        pool: Tensor,
        centroids: Tensor,
        codes: Tensor,
        reads: Reads,
        start: int,
        cells: Cells | None = None,
    ):
        heads, entries, width = pool.shape
        self.pool, self.centroids, self.codes = pool, centroids, codes
        self.reads, self.start = reads, start
        self.late = Tail(heads, width // 2, pool.dtype, codes.device)
        self.late.start = start + entries
        self.cells = self._indexed(codes) if cells is None else cells
        self.steps = 0  # queries that have chosen entries
        self.mass: Tensor | float = 0.0  # of the attention by codes, that they chose in all

    @classmethod
    def load(cls, tensors: dict[str, Tensor], span: tuple[int, int]) -> "PQSegment":
        """The segment whose `tensors()` these are."""
        listed = [tensors[name] for f in fields(Cells) if (name := f"cell_{f.name}") in tensors]
        segment = cls(
            tensors["pool"],
            tensors["centroids"],
            tensors["codes"],
            Reads(*tensors["reads"].tolist()),
            span[0],
            Cells(*listed) if listed else None,
        )
        if "late_k" in tensors:
            segment.late.append(tensors["late_k"], tensors["late_v"])
        return segment

    @property
    def span(self) -> tuple[int, int]:
        return self.start, self.late.start + self.late.length

    @property
    def lengths(self) -> tuple[int, ...]:
        """Entries that each KV head has: all there are."""
        return (self.span[1] - self.start,) * len(self.pool)

    @property
    def frozen(self) -> int:
        """Where the window ended when the segment was made: nothing before is ever given back."""
        return self.late.start + self.reads.window

    @property
    def read_entries(self) -> int:
        """Entries per head that one query reads of it and of its window."""
        return self.reads.sinks + self.reads.window + self.reads.count

    @property
    def captured(self) -> float | None:
        """The mean share of the middle's attention, by codes, that the chosen entries have had."""
        if not self.steps or AGGREGATES[self.reads.aggregate] != "softmax_sum":
            return None
        return float(self.mass) / self.steps

    def end(self, position: int) -> int:
        """Where it ends when `position` tokens have been seen: by whole blocks."""
        beyond = max(0, position - self.frozen)
        return self.late.start + beyond // self.reads.block * self.reads.block

    def extend(self, k: Tensor, v: Tensor) -> None:
        """Code the entries `k, v [H, n, D]` that leave the window. Unchanged if it fails."""
        codes = torch.cat((self.codes, ops.pq_assign(k, self.centroids)), dim=1)
        cells = self.cells
        if cells is not None:
            cells = cells.extended(codes, k.shape[1], self.centroids.shape[2])
        self.late.append(k, v)
        self.codes, self.cells = codes, cells

    def withdraw(self, end: int) -> tuple[Tensor, Tensor]:
        """Forget the entries from position `end` on and return them, `[H, n, D]` each."""
        kept = end - self.late.start
        assert 0 <= kept <= self.late.length, f"{end} is not among the entries that came later"
        k, v = self.late.keys[:, kept:].clone(), self.late.values[:, kept:].clone()
        codes = self.codes[:, : self.codes.shape[1] - k.shape[1]].clone()
        self.cells = self._indexed(codes)
        self.codes = codes
        self.late.truncate(kept)
        return k, v

    def attend(self, q: Tensor, scale: float, backend: Backend) -> tuple[Tensor, Tensor]:
        """`q [T, H*G, D]`: one query over entries it chooses, more over all entries.

        Returns `o [T, H*G, D]`, `lse [T, H*G]`.
        """
        if len(q) > 1 or self.reads.count >= self.codes.shape[1]:
            return self._attend_all(q, scale, backend)
        return backend.attend(q, self._fetched(self.choose(q[0], scale)), scale)

    def choose(self, q: Tensor, scale: float) -> Tensor:
        """The entries that `q [H*G, D]` reads beside the sinks, `[H, count]` int32, ascending.

        Entry 0 is the first that is no sink.
        """
        table = ops.pq_table(q, self.centroids, scale)
        aggregate, count = AGGREGATES[self.reads.aggregate], self.reads.count
        if self.cells is not None:
            chosen, worth = self.cells.select(self.cells.worth(table, aggregate), count)
        else:
            each = ops.pq_worth(ops.pq_score(table, self.codes), aggregate)
            chosen = ops.pq_select(each, count)
            worth = each.gather(1, chosen.long()).sum(dim=1)
        self.steps += 1
        self.mass = self.mass + worth.mean() / table.shape[1]
        return chosen

    def memory(self) -> Memory:
        """Exact bytes: entries, codes, centroids, their index, and room for late entries."""
        apart = ("pool", "late_k", "late_v")
        others = [tensor for name, tensor in self.tensors().items() if name not in apart]
        entries, here = self.pool.untyped_storage().nbytes(), self.pool.device == self.codes.device
        if in_file(self.pool):
            pool = Memory(disk=entries)
        else:
            pool = Memory(device=entries) if here else Memory(host=entries)
        return pool + Memory.of(others) + self.late.memory()

    def tensors(self) -> dict[str, Tensor]:
        named = {"pool": self.pool, "centroids": self.centroids, "codes": self.codes}
        named["reads"] = torch.tensor(astuple(self.reads), dtype=torch.int32)
        if self.cells is not None:
            named |= {f"cell_{f.name}": getattr(self.cells, f.name) for f in fields(Cells)}
        if self.late.length:
            named |= {"late_k": self.late.keys, "late_v": self.late.values}
        return named

    def _indexed(self, codes: Tensor) -> Cells | None:
        centroids, subspaces = self.centroids.shape[2], codes.shape[2]
        return Cells.of(codes, centroids) if centroids**subspaces <= LISTED else None

    def _attend_all(self, q: Tensor, scale: float, backend: Backend) -> tuple[Tensor, Tensor]:
        entries = self.pool.shape[1]
        step = entries if self.pool.device == q.device else SLICE
        slices = (self.pool[:, a : a + step].to(q.device) for a in range(0, entries, step))
        parts = [backend.attend(q, fused(entries), scale) for entries in slices]
        if self.late.length:
            parts.append(backend.attend(q, self.late.entries, scale))
        return ops.combine(parts)

    def _fetched(self, chosen: Tensor) -> Entries:
        """The sinks and the `chosen [H, count]` entries, copied together."""
        entries = self.pool.shape[1]
        wanted = torch.cat((self._sinks, chosen + self.reads.sinks), dim=1)  # [H, S + count]
        late = (wanted >= entries).nonzero(as_tuple=True) if self.late.length else None
        inside = wanted if late is None else wanted.clamp(max=entries - 1)
        found = ops.gather_entries(self.pool, inside)
        if late is not None:
            at = (late[0], wanted[late].long() - entries)
            found[late] = torch.cat((self.late.keys[at], self.late.values[at]), dim=1)
        return fused(found)

    @cached_property
    def _sinks(self) -> Tensor:
        """Entry numbers of the sinks, `[H, S]` int32."""
        sinks = torch.arange(self.reads.sinks, dtype=torch.int32, device=self.codes.device)
        return sinks.expand(len(self.pool), -1)


def fused(entries: Tensor) -> Entries:
    """`entries [H, n, 2D]`, key and value side by side, as keys and values."""
    heads, _, width = entries.shape
    flat = entries.reshape(-1, width)
    return even_entries(flat[:, : width // 2], flat[:, width // 2 :], heads)
