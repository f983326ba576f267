"""No compression: the exact baseline, and the lossless limit of every other method."""

from dataclasses import dataclass
from typing import ClassVar

from kvchat.engine.budget import Budget, Geometry
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.evict import keep_all
from kvchat.engine.methods.needs import Needs


@dataclass(frozen=True)
class Full:
    """Keeps every entry. It has no options; its budget is always 100 %."""

    budget: ClassVar[Budget] = Budget(fraction=1.0)
    needs: ClassVar[Needs] = Needs()

    def entries(self, geometry: Geometry) -> list[int]:
        """All of them."""
        return [geometry.full] * geometry.layers

    def compress(self, prefilled: Prefilled) -> FlatSegment:
        """All entries of the layer, flat."""
        return keep_all(prefilled)
