"""Entries that are found by their keys themselves: KCache, arXiv 2404.18057."""

from typing import ClassVar

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.cache import AGGREGATES
from kvchat.engine.cache.lookup import SLICE, LookupSegment, Reads, with_late


class KeySegment(LookupSegment):
    """Entries of a document, whose keys are where queries are, and whose values need not be.

    `keys [H, N, D]` are on the device, `pool [H, N, D]` has the values. One query reads all keys,
    and of the values those of the `reads.count` entries that it attends to most.
    """

    kind: ClassVar[str] = "keys"

    def __init__(self, keys: Tensor, pool: Tensor, reads: Reads, start: int):
        super().__init__(pool, reads, start, pool.shape[2], keys.device)
        self.keys = keys

    @classmethod
    def load(cls, tensors: dict[str, Tensor], span: tuple[int, int]) -> "KeySegment":
        """The segment whose `tensors()` these are."""
        reads = Reads(*tensors["reads"].tolist())
        return with_late(cls(tensors["keys"], tensors["pool"], reads, span[0]), tensors)

    def indexed(self, k: Tensor) -> None:
        """Keys are their own index."""

    def take(self, index: None) -> None:
        """Nothing is kept of them."""

    def forget(self, entries: int) -> None:
        """Nothing was kept of them."""

    def choose(self, q: Tensor, scale: float) -> Tensor:
        """The `reads.count` entries of each head that `q [H*G, D]` attends to most."""
        heads, aggregate = len(self.keys), AGGREGATES[self.reads.aggregate]
        queries = (q.float() * scale).view(heads, -1, q.shape[1])
        logits = torch.cat([queries @ k.float().transpose(1, 2) for k in self._parts()], dim=2)
        worth = ops.pq_worth(logits, aggregate)
        chosen = ops.pq_select(worth, self.reads.count)
        self.chose(worth.gather(1, chosen.long()).sum(dim=1).mean() / logits.shape[1])
        return chosen

    @property
    def index(self) -> dict[str, Tensor]:
        return {"keys": self.keys}

    def _parts(self) -> list[Tensor]:
        """Keys of what can be chosen, a slice at a time."""
        late = [self.late.keys] if self.late.length else []
        return [*self.keys[:, self.reads.sinks :].split(SLICE, dim=1), *late]

    def _slice(self, a: int, b: int) -> tuple[Tensor, Tensor]:
        return self.keys[:, a:b], self.pool[:, a:b].to(self.keys.device)

    def _found(self, wanted: Tensor) -> tuple[Tensor, Tensor]:
        return ops.gather_entries(self.keys, wanted), ops.gather_entries(self.pool, wanted)
