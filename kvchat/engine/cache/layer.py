"""One layer's cache and the whole cache: all that a model attends to of the past."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, ParamSpec, Protocol

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.attention.entries import Backend, Entries, JointBackend
from kvchat.engine.cache.archive import Archive, Exact
from kvchat.engine.cache.lookup import LookupSegment
from kvchat.engine.cache.segment import Memory, Segment
from kvchat.engine.cache.tail import Tail
from kvchat.engine.cache.window import WindowLayer

P = ParamSpec("P")


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


Mirror = Callable[["KVCache", str, tuple[Any, ...]], AbstractContextManager[None]]


def mirrored(method: Callable[P, None]) -> Callable[P, None]:
    """A change of a cache that the other ranks' parts of it follow."""

    @wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        assert not kwargs, "what is mirrored has its arguments in order"
        cache: Any = args[0]
        if cache.mirror is None:
            method(*args, **kwargs)
            return
        with cache.mirror(cache, method.__name__, args[1:]):
            method(*args, **kwargs)

    return run


class KVCache:
    """The cache of one conversation.

    `layers` attend to all tokens; methods compress them. `windows` are the sliding layers, by their
    number in the model. `position` counts tokens SEEN, whatever was evicted. The next token's
    rotary position is less by `saved`: what a document that is longer than the context window has
    been moved together.
    """

    def __init__(
        self,
        layers: list[LayerCache],
        position: int = 0,
        windows: Mapping[int, WindowLayer] | None = None,
        saved: int = 0,
    ):
        self.layers = layers
        self.windows = dict(windows or {})
        self.position = position
        self.saved = saved
        self.mirror: Mirror | None = None

    @property
    def rotary(self) -> int:
        """The rotary position of the next token."""
        return self.position - self.saved

    @classmethod
    def empty(
        cls,
        layers: int,
        heads: int,
        dim: int,
        dtype: torch.dtype,
        device: torch.device,
        backend: Backend,
        windows: Mapping[int, int] | None = None,
    ) -> "KVCache":
        """A cache of `layers` layers with `heads` KV heads of size `dim` and no entries.

        `windows` are the tokens that sliding layers see, by their number in the model; the `layers`
        stand at the other numbers.
        """

        def tail() -> Tail:
            return Tail(heads, dim, dtype, device)

        sliding = {
            number: WindowLayer(tail(), window, backend)
            for number, window in (windows or {}).items()
        }
        return cls([LayerCache(tail(), backend) for _ in range(layers)], windows=sliding)

    @torch.inference_mode()
    def fork(self) -> "KVCache":
        """A cache that shares the segments and goes on by itself, from the same position.

        Archives and observers stay behind.
        """
        windows = {number: window.fork() for number, window in self.windows.items()}
        layers = [layer.fork() for layer in self.layers]
        return KVCache(layers, self.position, windows, self.saved)

    @property
    def walked(self) -> list[LayerCache | WindowLayer]:
        """All layers in the model's order."""
        full = iter(self.layers)
        every = range(len(self.layers) + len(self.windows))
        return [self.windows[n] if n in self.windows else next(full) for n in every]

    @property
    def frozen(self) -> int:
        """Tokens that cannot be forgotten: `truncate` cannot go below."""
        return self.layers[0].frozen if self.layers else 0

    @property
    def kept(self) -> int:
        """Entries that are kept of the frozen tokens, over all layers and heads."""
        return sum(sum(layer.kept(self.frozen)) for layer in self.layers)

    @property
    def read(self) -> int:
        """Entries of the frozen tokens that one token reads, over all layers and heads."""
        fronts = [(layer, layer.sliding) for layer in self.layers]
        return sum(
            sum(layer.kept(self.frozen))
            if front is None
            else front.read_entries * len(layer.tail.k)
            for layer, front in fronts
        )

    @property
    def captured(self) -> float | None:
        """The share of attention that the entries which were read had, where that is known."""
        found = [front.captured for layer in self.layers if (front := layer.sliding) is not None]
        known = [share for share in found if share is not None]
        return sum(known) / len(known) if known else None

    def advance(self, tokens: int) -> None:
        """Count `tokens` more as seen, when all layers have their entries."""
        self.position += tokens
        for layer in self.layers:
            layer.settle(self.position)

    @property
    def steady(self) -> int | None:
        """Tokens that come before entries leave a tail for the segment in front of it; None: they
        never do."""
        fronts = [front for layer in self.layers if (front := layer.sliding) is not None]
        return min((front.due(self.position) for front in fronts), default=None)

    def accept(self, tokens: int) -> None:
        """Count `tokens` more as seen whose entries are behind the live ones of every tail."""
        for layer in self.walked:
            layer.tail.accept(tokens)
        self.advance(tokens)

    @mirrored
    def trim(self) -> None:
        """Give back what is preallocated for tokens to come."""
        for layer in self.walked:
            layer.tail.trim()

    @mirrored
    def truncate(self, position: int) -> None:
        """Forget every token from `position` on. They must not be frozen."""
        assert self.frozen <= position <= self.position, (
            f"cannot truncate {self.position} tokens to {position}: {self.frozen} are frozen"
        )
        for layer in self.walked:
            layer.truncate(position)
        self.position = position

    @mirrored
    def forget(self, position: int) -> None:
        """Let observers drop what they noted of tokens from `position` on."""
        for layer in self.layers:
            if layer.observer is not None:
                layer.observer.forget(position)

    @mirrored
    def thaw(self, position: int, saved: int | None = None) -> None:
        """Forget every token from `position` on, frozen ones too; a segment must end there. The
        positions that are `saved` may be others then."""
        for layer in self.walked:
            layer.thaw(position)
        self.position = position
        self.saved = self.saved if saved is None else saved

    def segments(self) -> Iterator[Segment]:
        """Every segment of every layer."""
        for layer in self.layers:
            yield from layer.segments

    def archived(self) -> Memory:
        """Exact bytes of the archives, which are no part of `memory`."""
        archives = (layer.archive for layer in self.layers)
        return sum((archive.memory() for archive in archives if archive), Memory())

    @property
    def preallocated(self) -> int:
        """Bytes of the tails that hold no entries yet."""
        return sum(layer.tail.preallocated for layer in self.walked)

    def memory(self) -> Memory:
        """Exact bytes of all layers."""
        return sum((layer.memory() for layer in self.walked), Memory())
