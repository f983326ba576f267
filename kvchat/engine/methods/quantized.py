"""A stage after any method that ends in a flat segment: what it keeps is stored in few bits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from kvchat.engine.budget import Budget, Geometry
from kvchat.engine.cache.quantized import QuantizedSegment
from kvchat.engine.cache.segment import FlatSegment, Segment
from kvchat.engine.methods.base import Method, Needs, Prefilled, Prunes

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

    def compress(self, prefilled: Prefilled) -> Segment:
        """The method's segment, quantised unless it will be pruned."""
        segment = self.method.compress(replace(prefilled, bits=self.bits))
        return segment if self.over > 1 else self._stored(segment)

    @property
    def over(self) -> float:
        """The method's."""
        return self.method.over if isinstance(self.method, Prunes) else 1.0

    def worth(self, prefilled: Prefilled, segment: Segment) -> Tensor:
        """The method's."""
        assert isinstance(self.method, Prunes), "over is 1"
        return self.method.worth(prefilled, segment)

    def prune(
        self, segments: Sequence[Segment], worth: Sequence[Tensor], geometry: Geometry
    ) -> list[Segment]:
        """What the method leaves, quantised."""
        assert isinstance(self.method, Prunes), "over is 1"
        few = replace(geometry, bits=self.bits)
        return [self._stored(segment) for segment in self.method.prune(segments, worth, few)]

    def _stored(self, segment: Segment) -> QuantizedSegment:
        assert isinstance(segment, FlatSegment), f"{segment.kind} has no rows to quantise"
        return QuantizedSegment.of(segment, self.bits)
