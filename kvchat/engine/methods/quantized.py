"""A stage after any method that ends in a flat segment: what it keeps is stored in few bits."""

from dataclasses import dataclass, replace
from typing import Any

from kvchat.engine.budget import Geometry
from kvchat.engine.cache.quantized import QuantizedSegment
from kvchat.engine.cache.segment import FlatSegment, Segment
from kvchat.engine.methods.stage import Stage

BITS = (8, 4)


@dataclass(frozen=True)
class Quantized(Stage):
    """Stores the entries that `method` keeps in `bits` bits, 8 or 4.

    KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache, https://arxiv.org/abs/2402.02750:
    keys per channel, values per token, in groups of 32. The conversation's tail is its residual
    window. A budget in bytes keeps more entries; one in entries or as a share keeps as many in
    less.
    """

    bits: int

    @property
    def settings(self) -> dict[str, Any]:
        """`bits=8`."""
        return {"bits": self.bits}

    def priced(self, geometry: Geometry) -> Geometry:
        """Entries of few bits."""
        return replace(geometry, bits=self.bits)

    def stored(self, segment: Segment, note: Any) -> Segment:
        """The segment's entries in few bits."""
        assert isinstance(segment, FlatSegment), f"{segment.kind} has no entries to quantise"
        return QuantizedSegment.of(segment, self.bits)
