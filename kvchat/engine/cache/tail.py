"""The live part of a layer's cache: dense, uniform over heads, append-only at its end."""

from collections.abc import Iterator

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.attention.entries import Backend, Entries
from kvchat.engine.cache.segment import Memory

# Entries that a tail grows by, at least: on a card every growth records the step anew.
STEPS = {"cpu": 64, "cuda": 256}


class Tail:
    """Keys and values `[H, capacity, D]` of which `length` entries, one after the other, are live.

    `start` is the position of the first of them, so live entry i belongs to token `start + i`.
    """

    # where each head's entries begin in the store seen as `[H * capacity, D]`
    _first: Tensor

    def __init__(self, heads: int, dim: int, dtype: torch.dtype, device: torch.device):
        self.start = 0
        self.length = 0
        self._offset = 0  # of the first live entry
        empty = torch.empty(heads, 0, dim, dtype=dtype, device=device)
        self._lengths = torch.zeros(heads, dtype=torch.int32, device=device)  # H times
        self._written = 0  # what is in it; written when it is asked for
        self._hold(empty, empty.clone())

    @property
    def capacity(self) -> int:
        """Entries per head that fit without growing."""
        return self.k.shape[1]

    @property
    def keys(self) -> Tensor:
        """Live keys `[H, length, D]`, a view."""
        return self.k[:, self._offset : self._offset + self.length]

    @property
    def values(self) -> Tensor:
        """Live values `[H, length, D]`, a view."""
        return self.v[:, self._offset : self._offset + self.length]

    @property
    def span(self) -> tuple[int, int]:
        """The positions of the live entries."""
        return self.start, self.start + self.length

    @property
    def entries(self) -> Entries:
        """The live entries, for attention backends."""
        return self._entries(self.length)

    @property
    def place(self) -> int:
        """Where the next entry goes in the store of each head."""
        return self._offset + self.length

    @property
    def room(self) -> int:
        """Entries per head that can be added before the store grows."""
        return self.capacity - self.place

    @property
    def first(self) -> Tensor:
        """Where each head's entries begin in the store seen as `[H * capacity, D]`, `[H]` int32."""
        return self._first

    def entries_ahead(self, length: Tensor, start: Tensor | None = None) -> Entries:
        """`length [H]` (int32) entries from `start [H]` in the store on, or from the first:
        numbers that the device alone knows."""
        heads, capacity, dim = self.k.shape
        most = capacity - self._offset
        return Entries(
            k=self.k.view(-1, dim),
            v=self.v.view(-1, dim),
            start=self._first if start is None else start,
            length=length,
            spans=tuple((head * capacity + self._offset, most) for head in range(heads)),
            bounds=True,
        )

    def newest(self, entries: int) -> Entries:
        """The newest `entries` live entries, for attention backends."""
        return self.some(self.length - entries, self.length)

    def some(self, a: int, b: int) -> Entries:
        """Live entries `a` to `b`, for attention backends."""
        dim = self.k.shape[2]
        return Entries(
            k=self.k.view(-1, dim),
            v=self.v.view(-1, dim),
            start=self._first + a,
            length=torch.full_like(self._lengths, b - a),
            spans=self.spans(a, b),
        )

    def spans(self, a: int, b: int) -> tuple[tuple[int, int], ...]:
        """Where live entries `a` to `b` of every head lie in the store `[H * capacity]`, and their
        number."""
        heads, capacity, _ = self.k.shape
        return tuple((head * capacity + self._offset + a, b - a) for head in range(heads))

    def reserve(self, entries: int) -> None:
        """Make room for exactly `entries` entries per head, if there is less."""
        if entries > self.capacity:
            self._resize(entries)

    def fork(self) -> "Tail":
        """A tail of its own with the same entries."""
        other = Tail(len(self.k), self.k.shape[2], self.k.dtype, self.k.device)
        other.start = self.start
        if self.length:
            other.append(self.keys, self.values)
        return other

    def append(self, k: Tensor, v: Tensor) -> None:
        """Add `k, v [H, T, D]` after the live entries: one rectangular write each."""
        self.grow(k.shape[1])
        end = self.place + k.shape[1]
        self.k[:, self.place : end] = k
        self.v[:, self.place : end] = v
        self.length += k.shape[1]

    def grow(self, entries: int) -> None:
        """Make room for `entries` more entries per head.

        A full tail grows by an eighth, and by a few entries at least, so copies are amortised.
        """
        if entries > self.room:
            length = self.length + entries
            self._resize(length + max(STEPS[self.k.device.type], length // 8))

    def accept(self, entries: int) -> None:
        """Count `entries` that were written behind the live ones."""
        assert 0 <= entries <= self.room, f"there is room for {self.room} entries, not {entries}"
        self.length += entries

    def truncate(self, length: int) -> None:
        """Forget the newest entries beyond `length`; nothing is copied."""
        assert 0 <= length <= self.length, f"cannot truncate {self.length} entries to {length}"
        self.length = length

    def trim(self) -> None:
        """Give back what entries do not need; the next ones make room for themselves."""
        if self.capacity > self.length:
            self._resize(self.length)

    def drop(self, entries: int) -> None:
        """Give up the oldest `entries` entries and their memory; the rest moves to a new store."""
        assert 0 <= entries <= self.length, f"cannot drop {entries} of {self.length} entries"
        self._hold(self.keys[:, entries:].clone(), self.values[:, entries:].clone())
        self.start += entries
        self.length -= entries

    def slide(self, entries: int) -> None:
        """Give up the oldest `entries` entries; nothing is copied, and the store keeps its size."""
        assert 0 <= entries <= self.length, f"cannot slide over {entries} of {self.length} entries"
        self._offset += entries
        self._first = self._first + entries
        self.start += entries
        self.length -= entries

    def prepend(self, k: Tensor, v: Tensor) -> None:
        """Put `k, v [H, n, D]` before the live entries: the opposite of `slide`."""
        keys, values = torch.cat((k, self.keys), dim=1), torch.cat((v, self.values), dim=1)
        self._hold(keys, values)
        self.start -= k.shape[1]
        self.length += k.shape[1]

    def attend(self, q: Tensor, scale: float, backend: Backend) -> tuple[Tensor, Tensor]:
        """Causal attention of `q [T, H*G, D]`, the queries of the newest T entries.

        A rectangle (the entries before them, all visible) and a square (the new entries themselves,
        causal), summed by log-sum-exp: no mask. Returns `o [T, H*G, D]`, `lse [T, H*G]`.
        """
        tokens = q.shape[0]
        assert 0 < tokens <= self.length, f"{tokens} queries over {self.length} entries"
        if tokens == 1:  # the newest entry sees everything
            return backend.attend(q, self.entries, scale)
        before = self.length - tokens
        square = backend.causal(q, self.keys[:, before:], self.values[:, before:], scale)
        if before == 0:
            return square
        return ops.combine([backend.attend(q, self._entries(before), scale), square])

    def located(self) -> Iterator[tuple[Entries, Tensor]]:
        """The live entries, and the position of every place in the store `[H * capacity]`."""
        heads, capacity, _ = self.k.shape
        first = self.start - self._offset
        place = torch.arange(first, first + capacity, device=self.k.device)
        yield self.entries, place.repeat(heads)

    def memory(self) -> Memory:
        """Exact bytes, preallocated ones included."""
        return Memory.of([self.k, self.v, self._first, self._lengths])

    @property
    def preallocated(self) -> int:
        """Bytes of entries that are not live."""
        return (
            (self.k.nbytes + self.v.nbytes) * (self.capacity - self.length) // max(self.capacity, 1)
        )

    def _entries(self, length: int) -> Entries:
        heads, capacity, dim = self.k.shape
        whole = length == self.length
        return Entries(
            k=self.k.view(-1, dim),
            v=self.v.view(-1, dim),
            start=self._first,
            length=self._on_device() if whole else torch.full_like(self._lengths, length),
            spans=tuple((head * capacity + self._offset, length) for head in range(heads)),
        )

    @torch.inference_mode()  # the store may have been made in it, and then only it may write
    def _on_device(self) -> Tensor:
        if self._written != self.length:
            self._lengths.fill_(self.length)
            self._written = self.length
        return self._lengths

    def _hold(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v, self._offset = k, v, 0
        heads, capacity, _ = k.shape
        self._first = torch.arange(heads, dtype=torch.int32, device=k.device) * capacity

    def _resize(self, capacity: int) -> None:
        heads, _, dim = self.k.shape
        k, v = self.k.new_empty(heads, capacity, dim), self.v.new_empty(heads, capacity, dim)
        k[:, : self.length] = self.keys
        v[:, : self.length] = self.values
        self._hold(k, v)
