"""The cache of a sliding-window layer: queries see the newest tokens only, so nothing is chosen."""

import torch
from torch import Tensor

from kvchat.engine.attention.entries import Backend, Entries, JointBackend
from kvchat.engine.cache.segment import Memory
from kvchat.engine.cache.tail import Tail
from kvchat.kernels.reference import windowed_attention

QUERIES = 256  # that are attended for at once, at least


class WindowLayer:
    """The live tail of a layer whose queries see the newest `window` tokens, themselves included.

    A document leaves the `window - 1` entries that tokens after it may see. Turns stay, so that
    they can be taken back, until `compact`.
    """

    observers: tuple[()] = ()  # methods look at full layers only
    sliding = None

    def __init__(self, tail: Tail, window: int, backend: Backend):
        self.tail, self.window, self.backend = tail, window, backend
        self._before: tuple[Tensor, Tensor] | None = None  # of the document, once turns are compact

    def fork(self) -> "WindowLayer":
        """A layer of its own with the same entries."""
        other = WindowLayer(self.tail.fork(), self.window, self.backend)
        other._before = self._before
        return other

    def attend(
        self, q: Tensor, scale: float, ahead: Entries | None = None
    ) -> tuple[Tensor, Tensor]:
        """Causal attention of `q [T, H*G, D]`, the queries of the newest T tokens, in their window.

        Returns `o [T, H*G, D]`, and log-sum-exps `[T, H*G]` if all of the tail is seen, else none.
        `ahead` as in `LayerCache.attend`.
        """
        if ahead is not None:
            if isinstance(self.backend, JointBackend):
                joint = self.backend.joint(q, [ahead], scale, q.dtype)
                if joint is not None:
                    return joint
            return self.backend.attend(q, ahead, scale)
        tokens, length = len(q), self.tail.length
        if length <= self.window:
            return self.tail.attend(q, scale, self.backend)
        if tokens == 1:
            return self.backend.attend(q, self.tail.newest(self.window), scale)
        parts, past = [], length - tokens
        step = max(QUERIES, self.window // 4)
        for a in range(0, tokens, step):
            b = min(a + step, tokens)
            seen = slice(max(0, past + a + 1 - self.window), past + b)
            keys, values = self.tail.keys[:, seen], self.tail.values[:, seen]
            cap = self.backend.cap
            parts.append(windowed_attention(q[a:b], keys, values, scale, self.window, cap))
        return torch.cat(parts), q.new_empty(0)

    def take(self, tail: Tail) -> None:
        """Begin with the window of another tail, which holds a document."""
        entries = min(tail.length, self.window - 1)
        first = tail.length - entries
        self.tail.start = tail.start + first
        self.tail.append(tail.keys[:, first:], tail.values[:, first:])

    def until(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Keys and values `[H, n, D]` that follow the document of `tokens` tokens may see of it."""
        if self._before is not None:
            return self._before
        entries = max(0, tokens - self.tail.start)
        first = max(0, entries - (self.window - 1))
        return self.tail.keys[:, first:entries], self.tail.values[:, first:entries]

    def compact(self, document: int, end: int) -> None:
        """Give up what tokens from `end` on do not see; what follows the `document` stays aside."""
        if self._before is None:
            keys, values = self.until(document)
            self._before = keys.clone(), values.clone()
        unseen = end + 1 - self.window - self.tail.start
        if unseen > 0:
            self.tail.drop(unseen)

    def thaw(self, position: int) -> None:
        """Forget every token from the document's end `position` on."""
        if self._before is None:
            self.truncate(position)
            return
        keys, values = self._before
        self._before = None
        self.tail.drop(self.tail.length)
        self.tail.start = position - keys.shape[1]
        self.tail.append(keys, values)

    def truncate(self, position: int) -> None:
        """Forget every token from `position` on."""
        if position < self.tail.start + self.tail.length:
            self.tail.truncate(position - self.tail.start)

    def memory(self) -> Memory:
        """Exact bytes of the tail, and of what stands aside."""
        aside = Memory.of(self._before or ())
        return self.tail.memory() + aside
