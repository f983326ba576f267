"""What follows any method that ends in a flat segment, and changes how its entries are stored."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from kvchat.engine.budget import Budget, Geometry
from kvchat.engine.cache.segment import FlatSegment, Segment
from kvchat.engine.methods.base import Method, Pools, Prefilled
from kvchat.engine.methods.needs import Needs


def pools(method: Method) -> bool:
    """Whether a method's layers share one budget."""
    return isinstance(method, Pools) and method.pools


@dataclass(frozen=True)
class Stage(ABC):
    """Stores what `method` keeps in another way.

    Where layers share a budget this waits until all of them are read; `note` is what it must then
    still know of a layer.
    """

    method: Method

    @property
    def budget(self) -> Budget:
        """The method's."""
        return self.method.budget

    @property
    def needs(self) -> Needs:
        """The method's."""
        return self.method.needs

    @property
    def settings(self) -> dict[str, Any]:
        """The stage as options of a spec."""
        return {}

    @abstractmethod
    def stored(self, segment: Segment, note: Any) -> Segment:
        """A segment of the method, stored in this way."""

    def priced(self, geometry: Geometry) -> Geometry:
        """What an entry costs in this way."""
        return geometry

    def noted(self, prefilled: Prefilled) -> Any:
        """What `stored` must know of the layer beside its segment."""
        return None

    def entries(self, geometry: Geometry) -> list[int]:
        """As many as the method keeps at this price of an entry."""
        return self.method.entries(self.priced(geometry))

    def compress(self, prefilled: Prefilled) -> Segment:
        """The method's segment in this way, or as it is if layers share a budget."""
        segment = self.method.compress(self._shown(prefilled))
        return segment if self.pools else self.stored(segment, self.noted(prefilled))

    def note(self, prefilled: Prefilled) -> list[Any]:
        """What `finish` must know of the layer, of this stage and those before it."""
        before = self.method.note(prefilled) if isinstance(self.method, Stage) else []
        return [*before, self.noted(prefilled)]

    def finish(self, segment: Segment, note: list[Any]) -> Segment:
        """What is left of a layer's segment, stored; for layers that share a budget."""
        *before, own = note
        if isinstance(self.method, Stage):
            segment = self.method.finish(segment, before)
        return self.stored(segment, own)

    @property
    def pools(self) -> bool:
        """The method's."""
        return pools(self.method)

    def pool(self, geometry: Geometry) -> int:
        """The method's, at this price of an entry."""
        assert isinstance(self.method, Pools), "its layers share no budget"
        return self.method.pool(self.priced(geometry))

    def worth(self, prefilled: Prefilled, segment: FlatSegment) -> Tensor:
        """The method's."""
        assert isinstance(self.method, Pools), "its layers share no budget"
        return self.method.worth(self._shown(prefilled), segment)

    def _shown(self, prefilled: Prefilled) -> Prefilled:
        price = self.priced(prefilled.geometry)
        return replace(prefilled, bits=price.bits, beside=price.beside)


def plain(method: Method) -> Method:
    """A method without the stages after it."""
    return plain(method.method) if isinstance(method, Stage) else method


def stages(method: Method) -> list[Stage]:
    """The stages after a method, the first one first."""
    return [*stages(method.method), method] if isinstance(method, Stage) else []
