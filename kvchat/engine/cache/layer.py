"""One layer's cache: all that the layer attends to of the past."""

from typing import Protocol

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.attention.entries import Backend, Entries, JointBackend
from kvchat.engine.cache.archive import Archive, Exact
from kvchat.engine.cache.lookup import LookupSegment
from kvchat.engine.cache.segment import Memory, Segment
from kvchat.engine.cache.tail import Tail


class Observer(Protocol):
    """Sees the queries that attend to a layer."""

    def see(
        self, q: Tensor, lse: Tensor, layer: "LayerCache", scale: float, cos: Tensor, sin: Tensor
    ) -> None:
        """Queries `q [T, H*G, D]` of the newest T tokens, with `lse [T, H*G]` of all they see.

        They were rotated by `cos, sin [T, D/2]`.
        """

    def forget(self, position: int) -> None:
        """Drop what was noted of tokens from `position` on."""


class LayerCache:
    """Frozen segments, oldest first, and the live tail; attention is summed over them.

    `archive` has all entries of the document, beside the segments. While it is open as `exact`,
    it is attended to in their place.
    """

    def __init__(self, tail: Tail, backend: Backend, observer: Observer | None = None):
        self.segments: list[Segment] = []
        self.tail = tail
        self.backend = backend
        self._joint = backend if isinstance(backend, JointBackend) else None
        self.observer = observer
        self.asking: Observer | None = None  # of a question that chooses entries anew
        self.citing: Observer | None = None  # of an answer whose sources will be asked for
        self.archive: Archive | None = None
        self.exact: Exact | None = None

    def fork(self) -> "LayerCache":
        """A layer that shares what is frozen and goes on by itself: a tail of its own."""
        other = LayerCache(self.tail.fork(), self.backend)
        shared = self.segments
        other.segments = [s.fork() if isinstance(s, LookupSegment) else s for s in shared]
        return other

    @property
    def observers(self) -> list[Observer]:
        """Whoever sees queries now."""
        seeing = self.observer, self.asking, self.citing
        return [each for each in seeing if each is not None]

    def attend(
        self, q: Tensor, scale: float, ahead: Entries | None = None
    ) -> tuple[Tensor, Tensor]:
        """Exact causal attention of `q [T, H*G, D]`, the queries of the newest T tokens.

        Returns `o [T, H*G, D]`, in fp32 or the dtype of `q`, and `lse [T, H*G]` (fp32) over every
        visible entry. `ahead` are the entries of the tail that the one token of a recorded step
        attends to: numbers that the device alone knows, so the same calls serve every such token.
        """
        past: list[Segment | Exact] = [*self.segments]
        if self.exact is not None:
            past = [self.exact, *self.since(self.exact.span[1])]
        alone = len(q) == 1 and (ahead is not None or q.is_cuda)  # nobody is to wait for the host
        found = [
            (part.entries_for(q[0], scale),)
            if alone and isinstance(part, LookupSegment) and part.by_itself
            else part.parts
            for part in past
        ]
        tail = self.tail.entries if ahead is None else ahead
        if self._joint is not None:
            entries = [each for own in found for each in own or ()]
            others = [part for part, own in zip(past, found, strict=True) if own is None]
            dtype = torch.float32 if others else q.dtype
            joint = self._joint.joint(q, [*entries, tail], scale, dtype)
            if joint is not None:  # else the backend takes one set of entries at a time
                seen = [part.attend(q, scale, self.backend) for part in others]
                return ops.combine([joint, *seen]) if seen else joint
        seen = []
        for part, own in zip(past, found, strict=True):
            if own is None or own is part.parts:
                seen.append(part.attend(q, scale, self.backend))
            else:
                seen += [self.backend.attend(q, each, scale) for each in own]
        if ahead is None:
            return ops.combine([*seen, self.tail.attend(q, scale, self.backend)])
        return ops.combine([*seen, self.backend.attend(q, tail, scale)])

    def since(self, position: int) -> list[Segment]:
        """Segments that begin at `position` or later."""
        return [segment for segment in self.segments if segment.span[0] >= position]

    def freeze(self, segment: Segment) -> None:
        """Let `segment` stand for what it covers: segments, and the oldest entries of the tail."""
        first, end = segment.span
        assert self.tail.start <= end <= self.tail.start + self.tail.length, segment.span
        self.tail.drop(end - self.tail.start)
        self.segments = [s for s in self.segments if s.span[1] <= first] + [segment]

    def thaw(self, position: int) -> None:
        """Forget the tail and every segment from `position` on, where a segment ends."""
        self.segments = [s for s in self.segments if s.span[1] <= position]
        self.tail.drop(self.tail.length)
        self.tail.start = position

    def adopt(self, segment: Segment, keys: Tensor, values: Tensor) -> None:
        """Take a segment that was made elsewhere, in front of a tail that is still empty.

        `keys, values [H, n, D]` are the entries after it, which begin the tail.
        """
        assert self.tail.length == 0 and segment.span[0] == self.tail.start, segment.span
        self.segments.append(segment)
        self.tail.start = segment.span[1]
        if keys.shape[1]:
            self.tail.append(keys, values)

    def replace(self, segment: Segment, keys: Tensor, values: Tensor) -> None:
        """Let `segment`, and `keys, values [H, n, D]` after it, stand for the document.

        They cover as much as the segment did that stands for it now.
        """
        first, *later = self.segments
        end = segment.span[1] + keys.shape[1]
        assert end == first.span[1] and not (later and keys.shape[1]), f"{end}, {first.span}"
        self.segments = [segment, *later]
        if keys.shape[1]:
            self.tail.prepend(keys, values)

    @property
    def sliding(self) -> LookupSegment | None:
        """The segment in front of the tail, if entries of the tail slide into it."""
        last = self.segments[-1] if self.segments else None
        return last if isinstance(last, LookupSegment) else None

    @property
    def frozen(self) -> int:
        """Tokens that cannot be forgotten: those of segments, and the window of a sliding one."""
        return self.tail.start if (front := self.sliding) is None else front.frozen

    def kept(self, end: int) -> list[int]:
        """Entries of each head that are kept of the tokens before `end`, where segments begin."""
        heads = self.tail.k.shape[0]
        if self.sliding is not None:  # nothing is lost, and the window is in the tail
            return [min(end, self.tail.start + self.tail.length)] * heads
        before = [s.lengths for s in self.segments if s.span[0] < end]
        return [sum(each) for each in zip(*before, strict=True)] if before else [0] * heads

    @property
    def window_bytes(self) -> int:
        """Bytes of the tail's entries that are frozen: the window of a sliding segment."""
        window = max(0, self.frozen - self.tail.start)
        return window * (self.tail.k[:, :1].nbytes + self.tail.v[:, :1].nbytes)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the segments and of the window in front of which one of them slides."""
        return sum(segment.memory().total for segment in self.segments) + self.window_bytes

    def settle(self, position: int) -> None:
        """Let entries leave the tail, or come back, as is due when `position` tokens were seen."""
        if (front := self.sliding) is None:
            return
        entries = front.end(position) - self.tail.start
        if entries > 0:
            front.extend(self.tail.keys[:, :entries], self.tail.values[:, :entries])
            self.tail.slide(entries)
        elif entries < 0:
            self.tail.prepend(*front.withdraw(self.tail.start + entries))

    def truncate(self, position: int) -> None:
        """Forget every token from `position` on."""
        if position < self.tail.start + self.tail.length:
            self.settle(position)
            self.tail.truncate(position - self.tail.start)

    def memory(self) -> Memory:
        """Exact bytes of segments and tail."""
        return sum((s.memory() for s in self.segments), self.tail.memory())
