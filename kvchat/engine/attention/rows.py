"""`Rows`, the one shape of keys and values that backends take, and the backend contract."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Keys and values of one layer, ragged over KV heads; a view, never a copy.

    KV head h owns the rows `start[h] : start[h] + length[h]` of `k, v [R, D]`, which have the same
    distance from row to row, D or more. `spans` are the same numbers on the host, so that nobody
    waits for the device to learn them. `bias [R]` (fp32) is added to the scaled logit of its row.
    """

    k: Tensor
    v: Tensor
    start: Tensor
    length: Tensor
    spans: tuple[tuple[int, int], ...]
    bias: Tensor | None = None


class Backend(Protocol):
    """Exact attention with its log-sum-exp; partial outputs are joined by `ops.combine`."""

    def attend(self, q: Tensor, rows: Rows, scale: float) -> tuple[Tensor, Tensor]:
        """Rectangle: `q [T, H*G, D]` sees every row. Returns `o [T, H*G, D]`, `lse [T, H*G]`."""
        ...

    def causal(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Square: `q [T, H*G, D]` over `k, v [H, T, D]`, query t sees rows 0..t."""
        ...
