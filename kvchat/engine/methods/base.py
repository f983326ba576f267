"""What a method may see and what it must be."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from kvchat.engine.budget import Budget, Geometry
from kvchat.engine.cache.low_rank import Features
from kvchat.engine.cache.quantized import QuantizedSegment
from kvchat.engine.cache.segment import FlatSegment, Segment
from kvchat.engine.methods.needs import Needs, ReplayScore
from kvchat.engine.peers import ALONE, Peers


@dataclass(frozen=True)
class Moments:
    """Mean `[H*G, D]` and covariance `[H*G, D, D]` (fp32) of the queries to come.

    Taken over the document's queries before rotation, then turned by the mean rotation of the next
    positions.
    """

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class Prefilled:
    """Entries of one layer after their exact prefill: exactly what a method may use.

    `keys, values [H, T, D]` after RoPE, entry 0 at position `start`. `queries [W, H*G, D]` are the
    observation queries, chosen by the engine (the document's last tokens, or those of a question
    that is `asked`), with the log-sum-exp `lse [W, H*G]` of everything they attend to; query w sees
    the first `seen[w]` entries. `scale` is the logit scale, `cap` what logits are capped at (0:
    they are not). Where the method's `needs` name them: `column_mass [H, T]` fp32, summed over
    queries and query heads, `moments`, and the scores `told[score] [H, T]` of replays or of a gate,
    infinite for entries that no replay is about. `output [H*G, D, hidden]` is the output projection
    by query head, `features` are the maps of LESS, where the model has them.

    Entries of a conversation that were kept before and entries that join them differ in number from
    head to head: then `position [H, T]` (int32) says where each belongs, `count [H, T]` (int32) how
    many tokens it stands for, the first `absent[h]` entries of head h do not exist, and all of them
    stand for the positions from `start` to `end`.

    All of this is of the heads of one rank. What compares heads goes through `every`, which has
    those of all `peers`, and back through `own`; budgets, `heads`, `entries` and `geometry` are of
    all of them.
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
    told: Mapping[ReplayScore, Tensor] | None = None
    output: Tensor | None = None
    features: Features | None = None
    position: Tensor | None = None
    count: Tensor | None = None
    absent: Tensor | None = None
    end: int | None = None
    cap: float = 0.0
    asked: bool = False
    peers: Peers = ALONE

    def every(self, x: Tensor, dim: int = 0) -> Tensor:
        """What `x` is of this rank's heads along `dim`, of the heads of all ranks."""
        return self.peers.joined(x, dim)

    def own(self, x: Tensor, dim: int = 0) -> Tensor:
        """Of all heads along `dim`, those of this rank: the inverse of `every`."""
        return self.peers.own(x, dim)

    def counts(self, every: Sequence[int]) -> list[int]:
        """The same of a number for every head."""
        each = len(every) // self.peers.count
        return list(every[self.peers.rank * each : (self.peers.rank + 1) * each])

    @property
    def heads(self) -> int:
        """KV heads of all ranks."""
        return len(self.keys) * self.peers.count

    @property
    def span(self) -> tuple[int, int]:
        """The positions that the entries stand for."""
        return self.start, self.start + self.shape[1] if self.end is None else self.end

    @property
    def shape(self) -> tuple[int, int]:
        """KV heads of this rank, and tokens."""
        return self.keys.shape[0], self.keys.shape[1]

    @property
    def geometry(self) -> Geometry:
        """What a budget is shared out over."""
        (start, end), dim = self.span, self.keys.shape[2]
        itemsize = self.keys.element_size()
        return Geometry(end - start, self.heads, self.num_layers, dim, itemsize)

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
        absent = 0 if self.absent is None else int(self.every(self.absent).sum())
        return self.heads * self.shape[1] - absent

    def keep(self, kept: Tensor) -> FlatSegment:
        """The entries where `kept [H, T]` is true."""
        start, end = self.span
        return FlatSegment.keep(self.keys, self.values, kept, start, self.position, end)

    def keep_all(self) -> FlatSegment:
        """Every entry: the lossless limit."""
        return self.keep(self.exists)


class Method(ABC):
    """One paper: a frozen dataclass whose fields are the hyper-parameters.

    One that `retrieves` keeps every entry; its budget is what one decoded token reads of them, and
    several tokens at once read every entry.
    """

    retrieves: ClassVar[bool] = False
    gathers: ClassVar[bool] = False  # what `extend` keeps moves together, for positions never end

    @property
    @abstractmethod
    def budget(self) -> Budget:
        """What it keeps, or what each decoded token reads."""

    @property
    def bits(self) -> int:
        """In how many bits a value of what it keeps is stored, 16 for as the model has it."""
        return 16

    @property
    def kind(self) -> str:
        """The kind of its segments, where the compiled step needs more for that than for others."""
        return "quantized" if self.bits < 16 else ""

    @property
    def residual(self) -> int:
        """How many of the newest entries of a head stay as the model has them, whatever `bits`."""
        return 0

    @property
    def means(self) -> int:
        """Entries of every head that stand for those that were evicted, where layers share a
        budget, which pays for them. Those of several entries stay as the model has its entries,
        whatever `bits`."""
        return 0

    def priced(self, geometry: Geometry) -> Geometry:
        """The geometry with the price of an entry as it is stored."""
        whole = self.residual + self.means
        return replace(geometry, bits=self.bits, residual=whole, biased=self.means > 0)

    @property
    def needs(self) -> Needs:
        """What `compress` wants to be shown: nothing but keys and values."""
        return Needs()

    @abstractmethod
    def entries(self, geometry: Geometry) -> list[int]:
        """Entries that each layer keeps at most, over all its heads.

        Asked before the prefill. Raises KvchatError("usage") if the budget cannot be met.
        """

    @abstractmethod
    def compress(self, prefilled: Prefilled) -> Segment:
        """The segment that stands for the layer's entries from now on."""

    def share(self, prefilled: Prefilled) -> int:
        """Entries that the layer keeps at most; shared out once for all layers."""
        return _shares(self, prefilled.geometry)[prefilled.layer]

    def together(self, geometry: Geometry) -> int | None:
        """Entries that all layers keep together, if they share one budget.

        `compress` then keeps what may be among them; the rest is dropped as layers come.
        """
        return None

    @property
    def even(self) -> float:
        """The fraction of an even share that every head is sure of, where layers share a budget."""
        return 0.0

    def worth(self, prefilled: Prefilled, segment: FlatSegment) -> tuple[Tensor, Tensor]:
        """What the entries of a layer's segment are worth beside those of other heads and layers,
        and beside those of their own head, `[R]` each."""
        raise NotImplementedError("its layers share no budget")

    def stored(self, segment: Segment) -> Segment:
        """A segment of `compress` in its bits, when no entry of it will be dropped."""
        if self.bits == 16:
            return segment
        assert isinstance(segment, FlatSegment), f"{segment.kind} has no entries to quantize"
        whole = segment.bias > 0 if self.means and segment.bias is not None else None
        return QuantizedSegment.of(segment, self.bits, self.residual, whole)

    @property
    def watches(self) -> Needs:
        """What `extend` wants to be shown of a conversation."""
        return self.needs

    def extend(self, prefilled: Prefilled) -> Segment:
        """The segment that stands for a conversation's entries, old and new."""
        return self.compress(prefilled)


@lru_cache(maxsize=64)
def _shares(method: Method, geometry: Geometry) -> tuple[int, ...]:
    return tuple(method.entries(geometry))
