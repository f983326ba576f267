"""Entries of a document in several precisions: a few dense sets of them."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import ClassVar

from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.attention.entries import Backend, Entries
from kvchat.engine.cache.quantized import QuantizedSegment
from kvchat.engine.cache.segment import FlatSegment, Memory

Part = QuantizedSegment | FlatSegment


class MixedSegment:
    """Entries by the bits in which they are stored: `parts_of[bits]`, each of the same span.

    16 bits are a flat segment, fewer a quantized one. Attention is summed over them.
    """

    kind: ClassVar[str] = "mixed"

    def __init__(self, stored: dict[int, Part]):
        self.stored = stored

    @classmethod
    def of(cls, flat: FlatSegment, bits: Tensor, widths: Sequence[int]) -> "MixedSegment":
        """The entries of a flat segment, `bits [R]` each, all of them among `widths`."""
        stored: dict[int, Part] = {}
        for width in widths:
            part = flat.where(bits == width)
            if part.ends[-1] or width == 16:
                stored[width] = part if width == 16 else QuantizedSegment.of(part, width)
        return cls(stored)

    @classmethod
    def load(cls, tensors: dict[str, Tensor], span: tuple[int, int]) -> "MixedSegment":
        """The segment whose `tensors()` these are."""
        stored: dict[int, Part] = {}
        for width in sorted({int(name.partition(".")[0]) for name in tensors}):
            prefix = f"{width}."
            own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            kind = FlatSegment if width == 16 else QuantizedSegment
            stored[width] = kind.load(own, span)
        return cls(stored)

    @property
    def span(self) -> tuple[int, int]:
        return next(iter(self.stored.values())).span

    @property
    def lengths(self) -> tuple[int, ...]:
        each = [part.lengths for part in self.stored.values()]
        return tuple(sum(heads) for heads in zip(*each, strict=True))

    @property
    def ends(self) -> tuple[int, ...]:
        """Where the entries of each head end, all precisions together."""
        return (0, *accumulate(self.lengths))

    @cached_property
    def parts(self) -> tuple[Entries, ...]:
        """All entries, for backends that take a whole layer."""
        return tuple(entries for part in self.stored.values() for entries in part.parts)

    def attend(self, q: Tensor, scale: float, backend: Backend) -> tuple[Tensor, Tensor]:
        """`q [T, H*G, D]` over all entries. Returns `o [T, H*G, D]`, `lse [T, H*G]`."""
        return ops.combine([part.attend(q, scale, backend) for part in self.stored.values()])

    def located(self) -> Iterator[tuple[Entries, Tensor]]:
        for part in self.stored.values():
            yield from part.located()

    def memory(self) -> Memory:
        """Exact bytes."""
        return sum((part.memory() for part in self.stored.values()), Memory())

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{width}.{name}": tensor
            for width, part in self.stored.items()
            for name, tensor in part.tensors().items()
        }
