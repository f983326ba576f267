"""No compression: the exact baseline, and the lossless limit of every other method."""

from dataclasses import dataclass
from typing import ClassVar

from kvchat.engine.budget import Budget, Geometry
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods.base import Method, Prefilled
from kvchat.engine.methods.options import EVERYTHING, Options


@dataclass(frozen=True)
class Full(Options, Method):
    """Keeps every entry. It has no options; its budget is always 100 %."""

    name: ClassVar[str] = "full"

    @property
    def budget(self) -> Budget:
        """Everything."""
        return EVERYTHING

    def entries(self, geometry: Geometry) -> list[int]:
        """All of them."""
        return [geometry.full] * geometry.layers

    def compress(self, prefilled: Prefilled) -> FlatSegment:
        """All entries of the layer, flat."""
        return prefilled.keep_all()
