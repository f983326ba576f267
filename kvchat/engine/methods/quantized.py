"""A stage after any method that ends in a flat segment: what it keeps is stored in few bits."""

from dataclasses import dataclass, replace

from kvchat.engine.budget import Budget, Geometry
from kvchat.engine.cache.quantized import QuantizedSegment
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods.base import Method, Needs, Prefilled

BITS = (8, 4)


@dataclass(frozen=True)
class Quantized:
    """Stores the rows that `method` keeps in `bits` bits, 8 or 4.

    KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache, https://arxiv.org/abs/2402.02750:
    keys per channel, values per token, in groups of 32. The conversation's tail is its residual
    window. A budget in bytes keeps more rows; one in rows or as a share keeps as many in less.
    """

    method: Method
    bits: int

    @property
    def budget(self) -> Budget:
        """The method's."""
        return self.method.budget

    @property
    def needs(self) -> Needs:
        """The method's."""
        return self.method.needs

    def rows(self, geometry: Geometry) -> list[int]:
        """As many as the method keeps when rows cost less."""
        return self.method.rows(replace(geometry, bits=self.bits))

    def compress(self, prefilled: Prefilled) -> QuantizedSegment:
        """The method's segment, quantised."""
        segment = self.method.compress(replace(prefilled, bits=self.bits))
        assert isinstance(segment, FlatSegment), f"{segment.kind} has no rows to quantise"
        return QuantizedSegment.of(segment, self.bits)
