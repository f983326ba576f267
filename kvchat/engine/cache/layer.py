"""One layer's cache and the whole cache: all that a model sees of the past."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.attention.rows import Backend
from kvchat.engine.cache.archive import Archive, Exact
from kvchat.engine.cache.memory import Memory
from kvchat.engine.cache.segment import Segment
from kvchat.engine.cache.tail import Tail


class Observer(Protocol):
    """Sees the queries that attend to a layer."""

    def see(
        self, q: Tensor, lse: Tensor, layer: "LayerCache", scale: float, cos: Tensor, sin: Tensor
    ) -> None:
        """Queries `q [T, H*G, D]` of the newest T tokens, with `lse [T, H*G]` of all they see.

        They were rotated by `cos, sin [T, D/2]`.
        """
        ...


class LayerCache:
    """Frozen segments, oldest first, and the live tail; attention is summed over them.

    `archive` holds all rows of the document, beside the segments. While it is open as `exact`, it
    is attended to in their place.
    """

    def __init__(self, tail: Tail, backend: Backend, observer: Observer | None = None):
        self.segments: list[Segment] = []
        self.tail = tail
        self.backend = backend
        self.observer = observer
        self.asking: Observer | None = None  # of a question that chooses rows anew
        self.archive: Archive | None = None
        self.exact: Exact | None = None

    @property
    def observers(self) -> list[Observer]:
        """Whoever sees queries now."""
        return [seeing for seeing in (self.observer, self.asking) if seeing is not None]

    def append(self, k: Tensor, v: Tensor) -> None:
        """Add rotated keys and values `[H, T, D]` of new tokens to the tail."""
        self.tail.append(k, v)

    def attend(self, q: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Exact causal attention of `q [T, H*G, D]`, the queries of the newest T tokens.

        Returns `o [T, H*G, D]` and `lse [T, H*G]` over every visible row, both fp32.
        """
        parts = [past.attend(q, scale, self.backend) for past in self._past()]
        parts.append(self.tail.attend(q, scale, self.backend))
        return ops.combine(parts)

    def _past(self) -> list[Segment | Exact]:
        if self.exact is None:
            return [*self.segments]
        return [self.exact, *self.since(self.exact.span[1])]

    def since(self, position: int) -> list[Segment]:
        """Segments that begin at `position` or later."""
        return [segment for segment in self.segments if segment.span[0] >= position]

    def freeze(self, segment: Segment) -> None:
        """Let `segment` stand for what it covers: segments, and the oldest rows of the tail."""
        first, end = segment.span
        assert self.tail.start <= end <= self.tail.start + self.tail.length, segment.span
        self.tail.drop(end - self.tail.start)
        self.segments = [s for s in self.segments if s.span[1] <= first] + [segment]

    def thaw(self, position: int) -> None:
        """Forget the tail and every segment from `position` on, where a segment ends."""
        self.segments = [s for s in self.segments if s.span[1] <= position]
        self.tail.drop(self.tail.length)
        self.tail.start = position

    def replace(self, segment: Segment) -> None:
        """Let `segment` stand for the document in place of what does: it covers as much."""
        first, *later = self.segments
        assert segment.span == first.span, f"{segment.span} in place of {first.span}"
        self.segments = [segment, *later]

    def adopt(self, segment: Segment) -> None:
        """Take a segment that was made elsewhere, in front of a tail that is still empty."""
        assert self.tail.length == 0 and segment.span[0] == self.tail.start, segment.span
        self.segments.append(segment)
        self.tail.start = segment.span[1]

    def memory(self) -> Memory:
        """Exact bytes of segments and tail."""
        return sum((s.memory() for s in self.segments), self.tail.memory())


class KVCache:
    """The cache of one conversation.

    `position` counts tokens SEEN, whatever was evicted: it is the next token's rotary position.
    """

    def __init__(self, layers: list[LayerCache], position: int = 0):
        self.layers = layers
        self.position = position

    @classmethod
    def empty(
        cls,
        layers: int,
        heads: int,
        dim: int,
        dtype: torch.dtype,
        device: torch.device,
        backend: Backend,
    ) -> "KVCache":
        """A cache of `layers` layers with `heads` KV heads of size `dim` and no rows."""
        return cls([LayerCache(Tail(heads, dim, dtype, device), backend) for _ in range(layers)])

    @property
    def frozen(self) -> int:
        """Tokens covered by segments; `truncate` cannot go below."""
        return self.layers[0].tail.start if self.layers else 0

    def truncate(self, position: int) -> None:
        """Forget every token from `position` on. They must be in the tail."""
        assert self.frozen <= position <= self.position, (
            f"cannot truncate {self.position} tokens to {position}: {self.frozen} are frozen"
        )
        for layer in self.layers:
            layer.tail.truncate(position - layer.tail.start)
        self.position = position

    def thaw(self, position: int) -> None:
        """Forget every token from `position` on, frozen ones too; a segment must end there."""
        for layer in self.layers:
            layer.thaw(position)
        self.position = position

    def segments(self) -> Iterator[Segment]:
        """Every segment of every layer."""
        for layer in self.layers:
            yield from layer.segments

    def archived(self) -> Memory:
        """Exact bytes of the archives, which are no part of `memory`."""
        archives = (layer.archive for layer in self.layers)
        return sum((archive.memory() for archive in archives if archive), Memory())

    @property
    def slack(self) -> int:
        """Bytes of the tails that hold no rows yet."""
        return sum(layer.tail.slack for layer in self.layers)

    def memory(self) -> Memory:
        """Exact bytes of all layers."""
        return sum((layer.memory() for layer in self.layers), Memory())
