"""All rows of a document in one layer, as they were read, beside the segments that were chosen of
them. Knows nothing of how to choose, nor of files.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvchat.engine.attention.rows import Backend, Rows
from kvchat.engine.cache.memory import Memory


@dataclass(frozen=True)
class Exact:
    """Keys and values `[H, T, D]` of a document's first T tokens, where queries are."""

    keys: Tensor
    values: Tensor

    @property
    def span(self) -> tuple[int, int]:
        """The positions that it stands for."""
        return 0, self.keys.shape[1]

    @property
    def length(self) -> int:
        """Rows of a head."""
        return self.keys.shape[1]

    def attend(self, q: Tensor, scale: float, backend: Backend) -> tuple[Tensor, Tensor]:
        """`q [T, H*G, D]` over all rows. Returns `o [T, H*G, D]`, `lse [T, H*G]`."""
        heads, tokens, dim = self.keys.shape
        start = torch.arange(heads, dtype=torch.int32, device=q.device) * tokens
        rows = Rows(
            k=self.keys.reshape(-1, dim),
            v=self.values.reshape(-1, dim),
            start=start,
            length=torch.full_like(start, tokens),
            spans=tuple((head * tokens, tokens) for head in range(heads)),
        )
        return backend.attend(q, rows, scale)


@dataclass
class Archive:
    """Keys and values `[H, T, D]` (contiguous) in host memory, or mapped from a file.

    `observed` is what the reading has seen of the queries, for methods to choose by. `check` is
    called before the rows are used for the first time; it raises if they are not what was written.
    """

    keys: Tensor
    values: Tensor
    observed: dict[str, Tensor]
    on_disk: bool = False
    check: Callable[[], None] | None = field(default=None, repr=False)

    def on(self, device: torch.device) -> Exact:
        """The rows on a device: themselves if they are there, else one layer's copy."""
        if self.check is not None:
            self.check()
            self.check = None
        return Exact(*(rows.to(device, non_blocking=True) for rows in (self.keys, self.values)))

    def memory(self) -> Memory:
        """Exact bytes held, in host memory or on disk."""
        held = sum(t.nbytes for t in (self.keys, self.values, *self.observed.values()))
        return Memory(disk=held) if self.on_disk else Memory(host=held)
