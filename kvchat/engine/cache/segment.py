"""Frozen parts of the past that queries attend to, and exact bytes of tensors."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from kvchat.engine.attention.entries import Backend, Entries


@dataclass(frozen=True)
class Memory:
    """Bytes that a cache uses: on the compute device, in host memory beside it, on disk."""

    device: int = 0
    host: int = 0
    disk: int = 0

    def __add__(self, other: "Memory") -> "Memory":
        return Memory(self.device + other.device, self.host + other.host, self.disk + other.disk)

    @property
    def total(self) -> int:
        """All bytes, wherever they are."""
        return self.device + self.host + self.disk

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> "Memory":
        """Device bytes behind `tensors`: each storage once, room to grow included."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return cls(device=sum(storages.values()))


class Segment(Protocol):
    """A frozen stretch of the past."""

    kind: ClassVar[str]

    @property
    def span(self) -> tuple[int, int]:
        """The half-open range of positions that it stands for."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Entries that each KV head has."""

    @property
    def parts(self) -> tuple[Entries, ...] | None:
        """All entries as they are stored; None if queries choose among them."""

    def attend(self, q: Tensor, scale: float, backend: Backend) -> tuple[Tensor, Tensor]:
        """`q [T, H*G, D]` over the segment. Returns `o [T, H*G, D]`, `lse [T, H*G]`."""

    def located(self) -> Iterator[tuple[Entries, Tensor]]:
        """All entries as numbers, some at a time, and the positions `[R]` of their store."""

    def memory(self) -> Memory:
        """Exact bytes, metadata included."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything stored, by name; `load` of the class is the inverse."""


@dataclass(frozen=True)
class FlatSegment:
    """Entries of all heads, flattened: KV head h owns entries `cu[h] : cu[h+1]` of `k, v [R, D]`.

    `cu [H+1]` and `position [R]` are int32. Keys are rotated at their `position`, for ever.
    `bias [R]` (fp32, optional) is added to the scaled logit of its entry; `count [R]` (optional)
    says how many tokens an entry stands for.
    """

    k: Tensor
    v: Tensor
    cu: Tensor
    position: Tensor
    span: tuple[int, int]
    ends: tuple[int, ...]  # cu on the host
    bias: Tensor | None = None
    count: Tensor | None = None
    kind: ClassVar[str] = "flat"

    @classmethod
    def keep(
        cls,
        keys: Tensor,
        values: Tensor,
        kept: Tensor,
        start: int,
        position: Tensor | None = None,
        end: int | None = None,
    ) -> "FlatSegment":
        """Copy out of `keys, values [H, T, D]` the entries where `kept [H, T]` (bool) is true.

        Entries stay in time order inside a head. They belong to the positions from `start` on, one
        after the other, unless `position [H, T]` says where each belongs and `end` where they end.
        """
        heads, tokens, dim = keys.shape
        if bool(kept.all()):
            k, v = _owned(keys.reshape(-1, dim)), _owned(values.reshape(-1, dim))
        else:
            head, token = kept.nonzero(as_tuple=True)  # head-major, ascending tokens: [R], [R]
            k, v = keys[head, token], values[head, token]
        if position is None:
            position = torch.arange(start, start + tokens, device=keys.device).expand(heads, -1)
        lengths = kept.sum(dim=1).tolist()
        span = (start, start + tokens if end is None else end)
        return cls.of(k, v, lengths, position[kept], span)

    @classmethod
    def of(
        cls,
        k: Tensor,
        v: Tensor,
        lengths: Sequence[int],
        position: Tensor,
        span: tuple[int, int],
        bias: Tensor | None = None,
        count: Tensor | None = None,
    ) -> "FlatSegment":
        """A segment of entries `k, v [R, D]`, `lengths[h]` of them for head h, head after head."""
        ends = (0, *accumulate(lengths))
        return cls(
            k=k,
            v=v,
            cu=torch.tensor(ends, dtype=torch.int32, device=k.device),
            position=position.to(torch.int32),
            span=span,
            ends=ends,
            bias=bias,
            count=count,
        )

    def where(self, chosen: Tensor) -> "FlatSegment":
        """The entries for which `chosen [R]` (bool) is true; the span stays."""
        lengths = [int(part.sum()) for part in torch.split(chosen, list(self.lengths))]
        return self._at(chosen.nonzero()[:, 0], lengths)

    def joined(self, later: "FlatSegment") -> "FlatSegment":
        """These entries and those of a `later` segment, which begins where this one ends."""
        assert self.span[1] == later.span[0], f"{self.span}, {later.span}"
        sizes = self.lengths, later.lengths

        def both(name: str, plain: float = 0.0) -> Tensor | None:
            stored = [getattr(self, name), getattr(later, name)]
            known = next((each for each in stored if each is not None), None)
            if known is None:
                return None
            by_head = [
                (known.new_full((sum(n),), plain) if each is None else each).split(n)
                for each, n in zip(stored, sizes, strict=True)
            ]
            return torch.cat([part for head in zip(*by_head, strict=True) for part in head])

        k, v, position = both("k"), both("v"), both("position")
        assert k is not None and v is not None and position is not None
        lengths = [sum(each) for each in zip(*sizes, strict=True)]
        span = self.span[0], later.span[1]
        return FlatSegment.of(k, v, lengths, position, span, both("bias"), both("count", 1.0))

    def in_time(self) -> "FlatSegment":
        """The same entries, those of each head in the order of their positions."""
        parts = torch.split(self.position, list(self.lengths))
        order = torch.cat([part.argsort() + a for part, a in zip(parts, self.ends, strict=False)])
        return self._at(order, self.lengths)

    def _at(self, places: Tensor, lengths: Sequence[int]) -> "FlatSegment":
        """The entries at `places [n]` of the store, head after head, `lengths[h]` of head h."""
        k, v, position, bias, count = (
            None if each is None else each.index_select(0, places)
            for each in (self.k, self.v, self.position, self.bias, self.count)
        )
        assert k is not None and v is not None and position is not None
        return FlatSegment.of(k, v, lengths, position, self.span, bias, count)

    @classmethod
    def load(cls, tensors: dict[str, Tensor], span: tuple[int, int]) -> "FlatSegment":
        """The segment whose `tensors()` these are."""
        return cls(**tensors, span=span, ends=tuple(tensors["cu"].tolist()))

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(b - a for a, b in pairwise(self.ends))

    @cached_property
    def entries(self) -> Entries:
        """A view for attention backends."""
        return Entries(
            k=self.k,
            v=self.v,
            start=self.cu[:-1],
            length=self.cu.diff(),
            spans=tuple((a, b - a) for a, b in pairwise(self.ends)),
            bias=self.bias,
        )

    @property
    def parts(self) -> tuple[Entries, ...]:
        """All entries, for backends that take a whole layer."""
        return (self.entries,)

    def attend(self, q: Tensor, scale: float, backend: Backend) -> tuple[Tensor, Tensor]:
        return backend.attend(q, self.entries, scale)

    def located(self) -> Iterator[tuple[Entries, Tensor]]:
        yield self.entries, self.position

    def memory(self) -> Memory:
        """Exact bytes: keys, values, positions, entry ranges, bias and count."""
        return Memory.of(self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        named = {
            name: getattr(self, name) for name in ("k", "v", "cu", "position", "bias", "count")
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def even_entries(k: Tensor, v: Tensor, heads: int) -> Entries:
    """`k, v [H * n, D]` as n entries of each of `heads` heads, for attention backends."""
    count = len(k) // heads
    start = torch.arange(heads, dtype=torch.int32, device=k.device) * count
    spans = tuple((head * count, count) for head in range(heads))
    return Entries(k, v, start, torch.full_like(start, count), spans)


def _owned(entries: Tensor) -> Tensor:
    """`entries` in memory of exactly their size: theirs if it fits, else a copy."""
    return entries if entries.untyped_storage().nbytes() == entries.nbytes else entries.clone()
