"""All entries of a document in one layer, beside the segments that were chosen of them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvchat.engine.attention.entries import Backend, Entries
from kvchat.engine.cache.segment import Memory, even_entries


@dataclass(frozen=True)
class Exact:
    """Keys and values `[H, T, D]` of a document's first T tokens, where queries are."""

    keys: Tensor
    values: Tensor

    @property
    def span(self) -> tuple[int, int]:
        return 0, self.keys.shape[1]

    @property
    def length(self) -> int:
        """Entries of a head."""
        return self.keys.shape[1]

    @property
    def parts(self) -> tuple[Entries, ...]:
        heads, _, dim = self.keys.shape
        return (even_entries(self.keys.reshape(-1, dim), self.values.reshape(-1, dim), heads),)

    def attend(self, q: Tensor, scale: float, backend: Backend) -> tuple[Tensor, Tensor]:
        return backend.attend(q, self.parts[0], scale)


@dataclass
class Archive:
    """Keys and values `[H, T, D]` (contiguous) in host memory, or mapped from a file.

    `observed` is what the prefill has seen of the queries, for methods to choose by. `check` is
    called before the entries are used for the first time; it raises if they are not what was
    written. One that is `shared` has the entries of a segment that keeps all, and goes when others
    are chosen.
    """

    keys: Tensor
    values: Tensor
    observed: dict[str, Tensor]
    on_disk: bool = False
    check: Callable[[], None] | None = field(default=None, repr=False)
    shared: bool = False

    def on(self, device: torch.device) -> Exact:
        """The entries on a device: themselves if they are there, else one layer's copy."""
        if self.check is not None:
            self.check()
            self.check = None
        return Exact(
            *(entries.to(device, non_blocking=True) for entries in (self.keys, self.values))
        )

    def memory(self) -> Memory:
        """Exact bytes, in host memory or on disk."""
        own = () if self.shared else (self.keys, self.values)
        size = sum(t.nbytes for t in (*own, *self.observed.values()))
        return Memory(disk=size) if self.on_disk else Memory(host=size)
