"""The frame of methods that keep every entry and read a few for each token. Not a method itself.

Shares of the budget, where entries are at home, and what is too short to be looked up are here; a
family member says what its index is.
"""

from abc import abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from kvchat.engine.budget import Geometry
from kvchat.engine.cache import AGGREGATES
from kvchat.engine.cache.homes import locked
from kvchat.engine.cache.lookup import LookupSegment, Reads
from kvchat.engine.cache.scratch import scratch
from kvchat.engine.cache.segment import Segment
from kvchat.engine.methods.base import Method, Prefilled
from kvchat.engine.methods.lookup_options import LookupOptions


@dataclass(frozen=True)
class Lookup(LookupOptions, Method):
    """Keeps every entry; the budget is what a decoded token reads.

    That are `sinks`, a window of the newest entries (`recent` of the rest, at most `most_recent`
    entries) and the entries that an index finds. Entries leave the window `block` at a time.
    Questions, several tokens at once, read every entry. The first `dense_layers` layers, and
    documents with fewer than `dense_below` entries to choose from, are read in full.
    """

    retrieves: ClassVar[bool] = True
    segments: ClassVar[type[LookupSegment]]

    @property
    def kind(self) -> str:
        return self.segments.kind

    @property
    @abstractmethod
    def least(self) -> int:
        """Entries to choose from that an index needs at least."""

    @abstractmethod
    def index(self, prefilled: Prefilled, coded: int, reads: Reads) -> Segment:
        """The segment of the first `coded` entries of a layer."""

    def entries(self, geometry: Geometry) -> list[int]:
        """All of them. Raises KvchatError("usage") if nothing could be read or found."""
        self.shares(geometry)
        return [geometry.full] * geometry.layers

    def shares(self, geometry: Geometry) -> Reads:
        """How the entries that a token reads of a head are shared out."""
        each = self.budget.entries(geometry) // geometry.heads
        sinks = min(self.sinks, each // 2)
        left = each - sinks - self.index_entries(each, geometry)
        window = min(int(left * self.near), self.most_recent)
        return self.reads(sinks, window, left - window)

    def index_entries(self, each: int, geometry: Geometry) -> int:
        """What a token reads of the index, as entries of a head, of `each` that it may read."""
        return 0

    @property
    def near(self) -> Fraction:
        """The share of the window."""
        return Fraction(self.recent).limit_denominator(10**6)

    def reads(self, sinks: int, window: int, count: int) -> Reads:
        return Reads(sinks, window, count, self.block, AGGREGATES.index(self.aggregate))

    def compress(self, prefilled: Prefilled) -> Segment:
        """All entries but those of the window."""
        geometry = prefilled.geometry
        reads = self.shares(geometry)
        middle = geometry.tokens - reads.sinks - reads.window
        few = middle < max(self.dense_below, self.least) or reads.count >= middle
        if few or prefilled.layer < self.dense_layers:
            return prefilled.keep_all()
        return self.index(prefilled, prefilled.shape[1] - reads.window, reads)

    def stored_at_home(self, prefilled: Prefilled, *parts: Tensor) -> Tensor:
        """Parts `[H, N, D]` of entries side by side, on the device, in host memory that it reaches
        or in a file that is mapped.

        `auto`: on the device as long as it has room for the layers that are left.
        """
        (heads, entries, dim), (first, *_) = parts[0].shape, parts
        shape, device, host = (heads, entries, dim * len(parts)), first.device, False
        if self.home == "disk":
            return put(scratch(shape, first.dtype), *parts)
        if device.type == "cuda" and self.home != "device":
            layers = prefilled.num_layers - prefilled.layer
            free = torch.cuda.mem_get_info(device)[0]
            host = self.home == "host" or free < sum(each.nbytes for each in parts) * layers
        return put(locked(shape, first.dtype) if host else first.new_empty(shape), *parts)


def put(pool: Tensor, *parts: Tensor) -> Tensor:
    """Write parts `[H, N, D]` into a pool, side by side."""
    for number, part in enumerate(parts):
        dim = part.shape[2]
        pool[..., number * dim : (number + 1) * dim] = part
    return pool
