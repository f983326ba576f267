"""What follows any method that ends in a flat segment: its entries are stored in few bits."""

from dataclasses import dataclass, replace

from torch import Tensor

from kvchat.engine.budget import Budget, Geometry
from kvchat.engine.cache.quantized import QuantizedSegment
from kvchat.engine.cache.segment import FlatSegment, Segment
from kvchat.engine.methods.base import Method, Prefilled
from kvchat.engine.methods.needs import Needs


@dataclass(frozen=True)
class Quantized(Method):
    """Stores the entries that `method` keeps in `bits` bits, 8 or 4.

    KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache, https://arxiv.org/abs/2402.02750:
    keys per channel, values per token, in groups of 32. The conversation's tail is its residual
    window. A budget in bytes keeps more entries; one in entries or as a share keeps as many in
    less.
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

    def entries(self, geometry: Geometry) -> list[int]:
        """As many as the method keeps at this price of an entry."""
        return self.method.entries(replace(geometry, bits=self.bits))

    def compress(self, prefilled: Prefilled) -> Segment:
        """The method's segment; `stored` quantizes it."""
        return self.method.compress(replace(prefilled, bits=self.bits))

    def together(self, geometry: Geometry) -> int | None:
        """The method's, at this price of an entry."""
        return self.method.together(replace(geometry, bits=self.bits))

    def worth(self, prefilled: Prefilled, segment: FlatSegment) -> Tensor:
        """The method's."""
        return self.method.worth(replace(prefilled, bits=self.bits), segment)

    def stored(self, segment: Segment) -> Segment:
        """The segment's entries in few bits."""
        assert isinstance(segment, FlatSegment), f"{segment.kind} has no entries to quantize"
        return QuantizedSegment.of(segment, self.bits)


def plain(method: Method) -> Method:
    """A method without what stores its entries in another way."""
    return method.method if isinstance(method, Quantized) else method
