"""Segments of which each decoded token reads the entries that it needs."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from copy import copy
from dataclasses import astuple, dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.attention.entries import Backend, Entries
from kvchat.engine.cache import AGGREGATES
from kvchat.engine.cache.scratch import in_file
from kvchat.engine.cache.segment import Memory, even_entries
from kvchat.engine.cache.tail import Tail

T = TypeVar("T")
S = TypeVar("S", bound="LookupSegment")
SLICE = 16384  # entries per head that a pool in host memory sends to the device at a time


@dataclass(frozen=True)
class Reads:
    """What one query reads: the first `sinks` entries, the `window` newest, `count` of the others.

    Entries leave the window `block` at a time. `aggregate` numbers, in `AGGREGATES`, how the
    queries of a group agree on entries. A segment that goes by a bound reads `count` on average.
    """

    sinks: int
    window: int
    count: int
    block: int
    aggregate: int = 0


class LookupSegment(ABC):
    """Entries of a document, all kept; what says which of them to read is a member's affair.

    It slides: entries leave the window in front of which it stands, that of the tail, into it.

    `pool [H, N, 2D]` has key and value of an entry side by side; it may be in host memory or in a
    file, and never changes. Entries that left the window later are in `late`. One query attends to
    the sinks and to the entries that it chooses; several queries at once attend to every entry.
    """

    kind: ClassVar[str]
    parts: ClassVar[None] = None  # queries choose

    def __init__(self, pool: Tensor, reads: Reads, start: int, dim: int, device: torch.device):
        heads, entries, _ = pool.shape
        self.pool, self.reads, self.start = pool, reads, start
        self.late = Tail(heads, dim, pool.dtype, device)
        self.late.start = start + entries
        self.steps = 0  # queries that have chosen entries
        self.mass: Tensor | float = 0.0  # of the attention as foretold, that they chose in all
        # the same of those that chose without the host: the mass of each head [H], and how many
        self._state: Tensor | None = None
        self._group = 1

    def fork(self: S) -> S:
        """A segment that slides by itself over the same pool and index."""
        other = copy(self)
        other.late, other.steps, other.mass = self.late.fork(), 0, 0.0
        other._state = None
        return other

    @property
    def span(self) -> tuple[int, int]:
        return self.start, self.late.start + self.late.length

    @property
    def lengths(self) -> tuple[int, ...]:
        """Entries that each KV head has: all there are."""
        return (self.span[1] - self.start,) * len(self.pool)

    @property
    def items(self) -> int:
        """Entries of a head to choose from: all but the sinks."""
        late = self.late  # asked for at every token: no other property is
        return late.start + late.length - self.start - self.reads.sinks

    @property
    def frozen(self) -> int:
        """Where the window ended when the segment was made: nothing before is ever given back."""
        return self.late.start + self.reads.window

    @property
    def read_entries(self) -> int:
        """Entries per head that one query reads of it and of its window."""
        return self.reads.sinks + self.reads.window + self.reads.count

    @property
    def captured(self) -> float | None:
        """The mean share of the attention, as foretold, that the chosen entries have had."""
        if AGGREGATES[self.reads.aggregate] != "softmax_sum":
            return None
        steps, mass = float(self.steps), float(self.mass)
        if self._state is not None:
            steps += float(self._state[-1])
            mass += float(self._state[:-1].mean()) / self._group
        return mass / steps if steps else None

    def end(self, position: int) -> int:
        """Where it ends when `position` tokens have been seen: by whole blocks."""
        beyond = max(0, position - self.frozen)
        return self.late.start + beyond // self.reads.block * self.reads.block

    def due(self, position: int) -> int:
        """Tokens that come before entries slide into it, once `position` have been seen."""
        beyond = position - self.frozen
        return self.reads.block - (beyond % self.reads.block if beyond > 0 else beyond)

    @property
    def by_itself(self) -> bool:
        """Whether a device finds what a query attends to without the host: by `entries_for`."""
        return False

    def entries_for(self, q: Tensor, scale: float) -> Entries:
        """The sinks and what `q [H*G, D]` attends to beside, copied together; nobody waits."""
        raise NotImplementedError

    def state(self, queries: int) -> Tensor:
        """What `entries_for` counts, for as many query heads: `[H + 1]` (fp32), the share of the
        attention that the chosen entries had, by head, and how often they were chosen."""
        if self._state is None:
            self._state = torch.zeros(len(self.pool) + 1, device=self.late.k.device)
            self._group = queries // len(self.pool)
        return self._state

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor, tuple[tuple[int, int], ...]]:
        """Where each head's entries are among those of `entries_for`; made once."""
        heads, each = len(self.pool), self.reads.sinks + self.reads.count
        start = torch.arange(heads, dtype=torch.int32, device=self.late.k.device) * each
        spans = tuple((head * each, each) for head in range(heads))
        return start, torch.full_like(start, each), spans

    def extend(self, k: Tensor, v: Tensor) -> None:
        """Take in the entries `k, v [H, n, D]` that leave the window. Unchanged if it fails."""
        index = self.indexed(k)
        self.late.append(k, v)
        self.take(index)

    def withdraw(self, end: int) -> tuple[Tensor, Tensor]:
        """Forget the entries from position `end` on and return them, `[H, n, D]` each."""
        kept = end - self.late.start
        assert 0 <= kept <= self.late.length, f"{end} is not among the entries that came later"
        k, v = self.late.keys[:, kept:].clone(), self.late.values[:, kept:].clone()
        self.forget(k.shape[1])
        self.late.truncate(kept)
        return k, v

    @abstractmethod
    def indexed(self, k: Tensor) -> Any:
        """What the index will be with the entries of keys `k [H, n, D]` behind all others."""

    @abstractmethod
    def take(self, index: Any) -> None:
        """Go by an index that `indexed` made."""

    @abstractmethod
    def forget(self, entries: int) -> None:
        """Take the newest `entries` out of the index."""

    @abstractmethod
    def choose(self, q: Tensor, scale: float) -> Tensor:
        """The entries that `q [H*G, D]` reads beside the sinks, `[H, n]` int32, ascending.

        Entry 0 is the first that is no sink. A head that reads less than others has -1 at the end.
        """

    @property
    @abstractmethod
    def index(self) -> dict[str, Tensor]:
        """What is stored beside the entries, by name."""

    def attend(self, q: Tensor, scale: float, backend: Backend) -> tuple[Tensor, Tensor]:
        """`q [T, H*G, D]`: one query over entries it chooses, more over all entries.

        Returns `o [T, H*G, D]`, `lse [T, H*G]`.
        """
        if len(q) > 1 or self.reads.count >= self.items:
            return self._attend_all(q, scale, backend)
        return backend.attend(q, self._fetched(self.choose(q[0], scale)), scale)

    def chose(self, worth: Tensor) -> None:
        """Count one more query, whose chosen entries have the share `worth` of its attention."""
        self.steps += 1
        self.mass = self.mass + worth

    def memory(self) -> Memory:
        """Exact bytes: entries, the index, and room for late entries."""
        numbers, late = Memory.of([self._reads]), self.late.memory()
        return self._at_home() + numbers + Memory.of(self.index.values()) + late

    def tensors(self) -> dict[str, Tensor]:
        named = {"pool": self.pool, "reads": self._reads} | self.index
        if self.late.length:
            named |= {"late_k": self.late.keys, "late_v": self.late.values}
        return named

    @property
    def _reads(self) -> Tensor:
        return torch.tensor(astuple(self.reads), dtype=torch.int32)

    def _at_home(self) -> Memory:
        entries, device = self.pool.untyped_storage().nbytes(), self.late.k.device
        if in_file(self.pool):
            return Memory(disk=entries)
        return Memory(device=entries) if self.pool.device == device else Memory(host=entries)

    def located(self) -> Iterator[tuple[Entries, Tensor]]:
        """Those at home, a slice at a time, then the late ones."""
        at, device = self.start, self.late.k.device
        for k, v in self._slices():
            place = torch.arange(at, at + k.shape[1], device=device)
            yield joined(k, v), place.repeat(len(k))
            at += k.shape[1]
        yield from self.late.located()

    def _slices(self) -> Iterator[tuple[Tensor, Tensor]]:
        entries = self.pool.shape[1]
        step = entries if self.pool.device == self.late.k.device else SLICE
        return (self._slice(a, min(a + step, entries)) for a in range(0, entries, step))

    def _attend_all(self, q: Tensor, scale: float, backend: Backend) -> tuple[Tensor, Tensor]:
        parts = [backend.attend(q, joined(k, v), scale) for k, v in self._slices()]
        if self.late.length:
            parts.append(backend.attend(q, self.late.entries, scale))
        return ops.combine(parts)

    def _slice(self, a: int, b: int) -> tuple[Tensor, Tensor]:
        """Keys and values `[H, b - a, D]` of the entries at home from a to b, on the device."""
        return split(self.pool[:, a:b].to(self.late.k.device))

    def _found(self, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[H, n, D]` of the entries `wanted [H, n]` at home, copied together."""
        return split(ops.gather_entries(self.pool, wanted))

    def _fetched(self, chosen: Tensor) -> Entries:
        """The sinks and the `chosen [H, n]` entries, copied together."""
        entries = self.pool.shape[1]
        wanted = torch.cat((self._sinks, chosen + self.reads.sinks), dim=1)  # [H, S + n]
        late = (wanted >= entries).nonzero(as_tuple=True) if self.late.length else None
        k, v = self._found(wanted if late is None else wanted.clamp(max=entries - 1))
        if late is not None:
            at = (late[0], wanted[late].long() - entries)
            k[late], v[late] = self.late.keys[at], self.late.values[at]
        return joined(k, v)

    @cached_property
    def _sinks(self) -> Tensor:
        """Entry numbers of the sinks, `[H, S]` int32."""
        sinks = torch.arange(self.reads.sinks, dtype=torch.int32, device=self.late.k.device)
        return sinks.expand(len(self.pool), -1)


def split(entries: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of `entries [H, n, 2D]`, side by side there."""
    dim = entries.shape[2] // 2
    return entries[..., :dim], entries[..., dim:]


def joined(k: Tensor, v: Tensor) -> Entries:
    """`k, v [H, n, D]`, with the same distance from entry to entry, for attention."""
    heads, _, dim = k.shape
    return even_entries(k.reshape(-1, dim), v.reshape(-1, dim), heads)


def with_late(segment: S, tensors: dict[str, Tensor]) -> S:
    """A segment that was loaded from `tensors`, with the entries that came later."""
    if "late_k" in tensors:
        segment.late.append(tensors["late_k"], tensors["late_v"])
    return segment


def named_fields(part: Any, prefix: str) -> dict[str, Tensor]:
    """The tensors of a dataclass by name, for a segment's `tensors()`."""
    return {f"{prefix}_{each.name}": getattr(part, each.name) for each in fields(part)}


def fields_of(kind: type[T], prefix: str, tensors: dict[str, Tensor]) -> T | None:
    """The inverse of `named_fields`; None if they are not there."""
    names = [f"{prefix}_{each.name}" for each in fields(kind)]  # type: ignore[arg-type]
    return kind(*(tensors[name] for name in names)) if names[0] in tensors else None
