"""What one token of a compiled step attends to in a layer, as kernels take it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvchat.engine.attention.entries import Entries
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.cache.pq import PQSegment
from kvchat.engine.cache.window import WindowLayer
from kvchat.engine.decode.maps import WORTH
from kvchat.engine.decode.room import Arrays, Room
from kvchat.kernels.cpu.attention import attend, attend_parallel, include
from kvchat.kernels.cpu.choice import choose, choose_parallel
from kvchat.kernels.cpu.numbers import view
from kvchat.kernels.cpu.packed import attend_packed, attend_packed_parallel

NONE = np.empty(0, np.float32)


class Set:
    """Entries, in few bits or as they are."""

    def __init__(self, entries: Entries, room: Room):
        heads, packing = len(entries.spans), entries.packing
        self.kernels = attend, attend_parallel
        self.room: Arrays = ()
        self.store: tuple[Any, ...] = view(entries.k), view(entries.v)
        if packing is not None:
            scales = packing.k_scale, packing.k_zero, packing.v_scale, packing.v_zero
            self.store = (*self.store, *map(view, scales), packing.bits)
            self.kernels, self.room = (attend_packed, attend_packed_parallel), room.packed
        self.start, self.length = np.empty(heads, np.int64), np.empty(heads, np.int64)
        self.bias = NONE if entries.bias is None else view(entries.bias)
        self.take(entries.spans)

    def take(self, spans: Sequence[tuple[int, int]]) -> None:
        """Other ranges of the same store."""
        for head, (first, count) in enumerate(spans):
            self.start[head], self.length[head] = first, count

    def ready(self, q: np.ndarray, scale: Any, many: bool) -> None:
        """Nothing has to be done before every token."""


class Chosen(Set):
    """The entries of a segment that a token's queries choose, copied side by side."""

    def __init__(self, segment: PQSegment, room: Room):
        heads, _, width = segment.pool.shape
        reads = segment.reads
        self.segment, self._own = segment, room
        each = reads.sinks + reads.count
        k, v = room.gathered(heads * each, width // 2, segment.pool.dtype)
        spans = tuple((head * each, each) for head in range(heads))
        none = torch.empty(0)
        super().__init__(Entries(k, v, none, none, spans), room)
        centroids = segment.centroids.contiguous()
        self._centroids, self._pool = view(centroids), view(segment.pool)
        _, self._parts, self._size, _ = centroids.shape
        self._chosen = np.empty((heads, reads.count), np.int32)
        self._gained = np.empty(heads, np.float32)
        self._codes: Tensor | None = None

    def ready(self, q: np.ndarray, scale: Any, many: bool) -> None:
        """Choose for the queries `q [H*G, D]`, and copy."""
        segment, room, reads = self.segment, self._own, self.segment.reads
        if segment.codes is not self._codes:
            self._follow()
        workers = room.workers if many else 1
        gained = (choose_parallel if many else choose)(
            q, self._centroids, *self._coded, scale, reads.aggregate, reads.count, reads.sinks,
            *self._cells, self._pool, *self._late,
            *room.choice(self._parts, self._size, self._items, workers),
            self._chosen, self._gained, *self.store,
        )  # fmt: skip
        segment.steps += 1
        segment.mass = segment.mass + gained / len(q)

    def _follow(self) -> None:
        """Entries have come from the window, or have gone back."""
        segment, cells = self.segment, self.segment.cells
        self._codes = segment.codes
        self._coded = (view(segment.codes.contiguous()),)
        if cells is None:
            none, self._items = np.empty((len(segment.codes), 0), np.int32), len(segment.codes[0])
            self._cells: Arrays = none, none, none
        else:
            listed = cells.offset, cells.order, cells.pending
            self._cells, self._items = tuple(map(view, listed)), cells.count.shape[1]
        late = segment.late
        self._late = view(late.k), view(late.v), late.place - late.length


class Past:
    """One layer's cache; its memory is kept by what looks into it, until `forget`."""

    def __init__(self, room: Room, scale: Any, cap: Any, window: int, threads: int):
        self.room, self.scale, self.cap = room, scale, cap
        self.window, self.threads = window, threads
        self.forget()

    def forget(self) -> None:
        """Let go of the cache that was decoded over."""
        self._store: Tensor | None = None  # of the tail, as the arrays below see it
        self.keys = self.values = NONE
        self._live: Set | None = None
        self._frozen: dict[int, tuple[Any, list[Set] | None]] = {}

    def follow(self, layer: LayerCache | WindowLayer) -> None:
        """Make room for an entry; its place is in `keys, values [H, capacity, D]`."""
        tail = layer.tail
        tail.grow(1)
        if tail.k is not self._store:
            self._store = tail.k
            self.keys, self.values = view(tail.k), view(tail.v)
            self._live = Set(tail.entries, self.room)

    def attend(self, layer: LayerCache | WindowLayer) -> None:
        """Attention of the room's queries over the layer, into its `o` and `lse`."""
        room, tail = self.room, layer.tail
        assert self._live is not None
        newest = min(tail.length, self.window or tail.length)
        self._live.take(tail.newest_spans(newest))
        sets, others = [], []
        if isinstance(layer, LayerCache):
            for segment in layer.segments:
                found = self._sets(segment)
                if found is None:
                    others.append(segment)
                else:
                    sets += found
        sets.append(self._live)
        entries = sum(int(each.length.sum()) for each in sets)
        many = self.threads > 1 and entries * room.dim >= WORTH
        splits = room.splits if many else 1
        state, fresh, q = room.state(splits), True, room.queries
        for number, each in enumerate(sets):
            each.ready(q, self.scale, many)
            last = number == len(sets) - 1 and not others
            each.kernels[many](
                q, *each.store, each.start, each.length, each.bias, self.scale, self.cap,
                room.width, splits, fresh, last, *state, room.asked, room.logits, *each.room,
                room.o, room.lse,
            )  # fmt: skip
            fresh = False
        for number, segment in enumerate(others):
            wide = room.seen_q.to(tail.k.dtype)
            o, lse = segment.attend(wide, float(self.scale), layer.backend)
            last = number == len(others) - 1
            include(*state, splits, last, _row(o), _row(lse), room.o, room.lse)

    def _sets(self, segment: Any) -> list[Set] | None:
        """What the kernels take of a segment; None if they cannot."""
        if isinstance(segment, PQSegment) and segment.reads.count >= segment.codes.shape[1]:
            return None  # it is read in full, which is rare
        known = self._frozen.get(id(segment))
        if known is None or known[0] is not segment:
            known = segment, self._made(segment)
            if len(self._frozen) > 8:
                self._frozen.clear()
            self._frozen[id(segment)] = known
        return known[1]

    def _made(self, segment: Any) -> list[Set] | None:
        if isinstance(segment, PQSegment):
            return [Chosen(segment, self.room)]
        return [Set(part, self.room) for part in segment.parts or ()] or None


def _row(tensor: Tensor) -> np.ndarray:
    return tensor[0].float().contiguous().numpy()
