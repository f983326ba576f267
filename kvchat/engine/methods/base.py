"""What a method may see and what it must be. Knows no particular method."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from kvchat.engine.budget import Geometry
from kvchat.engine.cache.segment import FlatSegment, Segment
from kvchat.engine.methods.needs import Chosen, Telling


@dataclass(frozen=True)
class Evidence:
    """Queries `q [N, H*G, D]` that stand for those to come, and what they read from a whole layer:
    `o [N, H*G, D]` with `lse [N, H*G]`."""

    q: Tensor
    o: Tensor
    lse: Tensor


@dataclass(frozen=True)
class Moments:
    """Mean `[H*G, D]` and covariance `[H*G, D, D]` (fp32) of the queries to come.

    Taken over the document's queries before rotation, then turned by the mean rotation of the next
    positions.
    """

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class Retold:
    """What a layer's replays show.

    `scores [H, T]` by telling, infinite for entries that no replay is about; `evidence`, where it
    was asked for; `structural [T]` (bool), the tokens that only structure the text.
    """

    scores: Mapping[Telling, Tensor]
    evidence: Evidence | None
    structural: Tensor


@dataclass(frozen=True)
class Prefilled:
    """Entries of one layer after their exact reading: exactly what a method may use.

    `keys, values [H, T, D]` after RoPE, entry 0 at position `start`. `queries [W, H*G, D]` are the
    observation queries, chosen by the engine (the document's last tokens, or probes), with the
    log-sum-exp `lse [W, H*G]` of everything they attend to; query w sees the first `seen[w]`
    entries. `scale` is the logit scale. Where the method's `needs` name them: `column_mass [H, T]`
    fp32, summed over queries and query heads, `moments`, what replays have shown (`retold`).
    `output [H*G, D, hidden]` is the output projection by query head.

    Entries of a conversation that were kept before and entries that join them differ in number from
    head to head: then `position [H, T]` (int32) says where each belongs, `count [H, T]` (int32) how
    many tokens it stands for, the first `absent[h]` entries of head h do not exist, and all of them
    stand for the positions from `start` to `end`.

    What is kept will be stored in `bits` bits, or as it is, with `beside` bytes at every entry.
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
    column_mass: Tensor | None = None
    moments: Moments | None = None
    retold: Retold | None = None
    output: Tensor | None = None
    position: Tensor | None = None
    count: Tensor | None = None
    absent: Tensor | None = None
    bits: int | None = None
    beside: int = 0
    end: int | None = None

    @property
    def span(self) -> tuple[int, int]:
        """The positions that the entries stand for."""
        return self.start, self.start + self.shape[1] if self.end is None else self.end

    @property
    def shape(self) -> tuple[int, int]:
        """KV heads and tokens."""
        return self.keys.shape[0], self.keys.shape[1]

    @property
    def geometry(self) -> Geometry:
        """What a budget is shared out over."""
        (start, end), (heads, _, dim) = self.span, self.keys.shape
        itemsize = self.keys.element_size()
        layers = self.num_layers
        return Geometry(end - start, heads, layers, dim, itemsize, self.bits, self.beside)

    @property
    def exists(self) -> Tensor:
        """Which entries there are, `[H, T]` bool."""
        heads, tokens = self.shape
        if self.absent is None:
            return torch.ones(heads, tokens, dtype=torch.bool, device=self.keys.device)
        return torch.arange(tokens, device=self.keys.device) >= self.absent[:, None]

    @property
    def entries(self) -> int:
        """How many entries there are, over all heads."""
        heads, tokens = self.shape
        return heads * tokens - (0 if self.absent is None else int(self.absent.sum()))


@runtime_checkable
class Method(Chosen, Protocol):
    """One paper: a frozen dataclass whose fields are the hyper-parameters.

    Its `needs` are what `compress` wants to be shown.
    """

    def entries(self, geometry: Geometry) -> list[int]:
        """Entries that each layer keeps at most, over all its heads.

        Asked before anything is read. Raises KvchatError("usage") if the budget cannot be met.
        """
        ...

    def compress(self, prefilled: Prefilled) -> Segment:
        """The segment that stands for the layer's entries from now on."""
        ...


@runtime_checkable
class Retrieves(Protocol):
    """A method that keeps every entry, where each written token chooses what it reads.

    Its budget is what one token reads; `entries` are what is kept, all of them.
    """

    @property
    def exact_for_multi_token(self) -> bool:
        """Whether several tokens at once read every entry: then they differ from one by one."""
        ...

    @property
    def code(self) -> tuple[int, int]:
        """Parts of a key's code, and bits of a part."""
        ...

    def reads(self, geometry: Geometry) -> list[int]:
        """Entries of each layer that a written token reads, over all its heads."""
        ...


@runtime_checkable
class Pools(Protocol):
    """A method whose layers share one budget: the best entries of all of them stay.

    `compress` keeps what may be among them; the reading drops the rest as layers come.
    """

    @property
    def pools(self) -> bool:
        """Whether it does: a stage after a method does if the method does."""
        ...

    def pool(self, geometry: Geometry) -> int:
        """Entries that all layers keep together."""
        ...

    def worth(self, prefilled: Prefilled, segment: FlatSegment) -> Tensor:
        """What the entries of a layer's segment are worth beside those of other layers, `[R]`."""
        ...
