"""The whole cache of a conversation: all layers, and how many tokens they have seen."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, ParamSpec

import torch

from kvchat.engine.attention.entries import Backend
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.cache.segment import Memory, Segment
from kvchat.engine.cache.tail import Tail
from kvchat.engine.cache.window import WindowLayer

P = ParamSpec("P")
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

    def held(self, end: int) -> int:
        """Bytes that are held of the first `end` tokens, where segments begin."""
        segments = sum(s.memory().total for s in self.segments() if s.span[0] < end)
        return segments + sum(layer.window_bytes for layer in self.layers)

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
