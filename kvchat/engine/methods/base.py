"""What a method may see and what it must be. Knows no particular method."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from kvchat.engine.budget import Budget
from kvchat.engine.cache.segment import Segment


@dataclass(frozen=True)
class Prefilled:
    """One layer of a document after its exact reading: exactly what a method may use.

    `keys, values [H, T, D]` after RoPE, row 0 at position `start`. `queries [W, H*G, D]` are the
    observation queries, chosen by the engine (the document's last tokens, or probes), with the
    log-sum-exp `lse [W, H*G]` of everything they attend to. `scale` is the logit scale.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor
    lse: Tensor
    seen: Tensor
    scale: float
    layer: int
    num_layers: int
    start: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """KV heads and tokens."""
        return self.keys.shape[0], self.keys.shape[1]

    def allowed(self, budget: Budget) -> int:
        """Rows that this layer may keep over all its heads, of `H * T`."""
        heads, tokens = self.shape
        # key and value of a row, and its int32 position
        row_bytes = 2 * self.keys.shape[2] * self.keys.element_size() + 4
        return budget.rows(tokens, heads, self.num_layers, row_bytes)


class Method(Protocol):
    """One paper: a frozen dataclass whose fields are the hyper-parameters."""

    @property
    def budget(self) -> Budget:
        """What it keeps."""
        ...

    @property
    def observed(self) -> int:
        """How many of the document's last queries `compress` wants to see (W); 0 for none."""
        ...

    def compress(self, prefilled: Prefilled) -> Segment:
        """The segment that stands for the layer's rows from now on."""
        ...
