"""What one token of a compiled step attends to in a layer, as kernels take it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvchat.engine.attention.entries import Entries
from kvchat.engine.cache.clusters import ClusterSegment
from kvchat.engine.cache.keys import KeySegment
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.cache.lookup import LookupSegment
from kvchat.engine.cache.low_rank import LowRankSegment
from kvchat.engine.cache.pq import PQSegment
from kvchat.engine.cache.window import WindowLayer
from kvchat.engine.decode.room import Arrays, Lane, Room
from kvchat.engine.weights.host import WORTH
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

    def __init__(self, segment: LookupSegment, room: Room):
        self.segment, self._own = segment, room
        self._heads, self._most = len(segment.pool), -1
        self._seen: tuple[Any, ...] = (None, None, -1)
        reads = segment.reads
        none = np.empty((self._heads, 0), np.int32)
        self._level: Arrays = np.empty((self._heads, 1, 0, 0), np.float32), none, NONE
        self._bounds: np.ndarray = NONE
        self._cells: Arrays = none, none, none
        home = view(segment.pool)
        if isinstance(segment, KeySegment):
            self._entries: tuple[Any, ...] = view(segment.keys), home, 0
            self._centroids = np.empty((self._heads, 1, 1, 1), np.float32)
        else:
            assert isinstance(segment, PQSegment)
            self._entries = home, home, segment.pool.shape[2] // 2
            self._centroids = view(segment.centroids.contiguous())
        self._room_for(reads.count)
        if isinstance(segment, ClusterSegment):
            self._bounds = view(segment.bound)
            if (level := segment.coarse) is not None:
                self._level = tuple(map(view, (level.centroids, level.owner, level.bound)))

    def ready(self, q: np.ndarray, scale: Any, many: bool) -> None:
        """Choose for the queries `q [H*G, D]`, and copy."""
        segment, room, reads = self.segment, self._own, self.segment.reads
        self._follow()
        workers = room.workers if many else 1
        _, parts, size, _ = self._centroids.shape
        gained = (choose_parallel if many else choose)(
            q, self._centroids, self._codes, scale, reads.aggregate, reads.count, self._bounds,
            reads.sinks, *self._cells, *self._level, *self._entries, *self._late,
            *room.choice(parts, size, self._items, workers),
            self._chosen, self._found, self._gained, *self.store,
        )  # fmt: skip
        self.length[:] = reads.sinks + self._found
        segment.chose(gained / len(q))
        if isinstance(segment, ClusterSegment):
            segment.found += int(self._found.sum())

    def _room_for(self, entries: int) -> None:
        """Room for as many entries of each head beside the sinks."""
        segment, heads, self._most = self.segment, self._heads, entries
        each = segment.reads.sinks + entries
        dim = segment.late.k.shape[2]
        k, v = self._own.gathered(heads * each, dim, segment.pool.dtype)
        spans = tuple((head * each, each) for head in range(heads))
        none = torch.empty(0)
        super().__init__(Entries(k, v, none, none, spans), self._own)
        self._chosen = np.empty((heads, entries), np.int32)
        self._found = np.empty(heads, np.int64)
        self._gained = np.empty(heads, np.float32)

    def _follow(self) -> None:
        """Entries may have come from the window, or have gone back."""
        segment, late = self.segment, self.segment.late
        codes = segment.codes if isinstance(segment, PQSegment) else None
        store, coded, length = self._seen
        if late.k is store and codes is coded and late.length == length:
            return
        self._seen = late.k, codes, late.length
        self._late = view(late.k), view(late.v), late.place - late.length
        self._items = segment.items
        if isinstance(segment, PQSegment):
            self._codes = view(segment.codes.contiguous())
            if (cells := segment.cells) is not None:
                listed = cells.offset, cells.order, cells.pending
                self._cells, self._items = tuple(map(view, listed)), cells.count.shape[1]
        else:
            self._codes = np.empty((self._heads, segment.items, 0), np.uint8)
        if isinstance(segment, ClusterSegment) and segment.items > self._most:
            self._room_for(segment.items + segment.items // 8)


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

    def attend(self, layer: LayerCache | WindowLayer, lane: Lane) -> None:
        """Attention of a lane's queries over the layer, into its `o` and `lse`."""
        room, tail = self.room, layer.tail
        assert self._live is not None
        newest = min(tail.length, self.window or tail.length)
        self._live.take(tail.spans(tail.length - newest, tail.length))
        sets, beside = [], []  # what kernels read, and what torch has attended to
        if isinstance(layer, LayerCache):
            for segment in layer.segments:
                found = self._sets(segment)
                if found is None:
                    wide = lane.seen_q.to(tail.k.dtype)
                    beside.append(segment.attend(wide, float(self.scale), layer.backend))
                else:
                    sets += found
                if isinstance(segment, LowRankSegment):
                    beside.append(segment.state.attend(lane.seen_q))
        sets.append(self._live)
        entries = sum(int(each.length.sum()) for each in sets)
        many = self.threads > 1 and entries * room.dim >= WORTH
        splits = room.splits if many else 1
        state, fresh, q = room.state(splits), True, lane.queries
        for number, each in enumerate(sets):
            each.ready(q, self.scale, many)
            last = number == len(sets) - 1 and not beside
            each.kernels[many](
                q, *each.store, each.start, each.length, each.bias, self.scale, self.cap,
                room.width, splits, fresh, last, *state, room.asked, room.logits, *each.room,
                lane.o, lane.lse,
            )  # fmt: skip
            fresh = False
        for number, (o, lse) in enumerate(beside):
            last = number == len(beside) - 1
            include(*state, splits, last, _row(o), _row(lse), lane.o, lane.lse)

    def _sets(self, segment: Any) -> list[Set] | None:
        """What the kernels take of a segment; None if they cannot."""
        if isinstance(segment, LookupSegment) and segment.reads.count >= segment.items:
            return None  # it is read in full, which is rare
        known = self._frozen.get(id(segment))
        if known is None or known[0] is not segment:
            known = segment, self._made(segment)
            if len(self._frozen) > 8:
                self._frozen.clear()
            self._frozen[id(segment)] = known
        return known[1]

    def _made(self, segment: Any) -> list[Set] | None:
        if isinstance(segment, LookupSegment):
            return [Chosen(segment, self.room)]
        if isinstance(segment, LowRankSegment):
            segment = segment.entries
        return [Set(part, self.room) for part in segment.parts or ()] or None


def _row(tensor: Tensor) -> np.ndarray:
    return tensor[0].float().contiguous().numpy()
