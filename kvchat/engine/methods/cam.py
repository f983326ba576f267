"""CaM: entries that leave the cache give a part of their values to those that stay."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.eviction import Eviction
from kvchat.engine.methods.needs import Needs
from kvchat.engine.methods.options import CaMOptions
from kvchat.engine.methods.scores import recency


@dataclass(frozen=True)
class CaM(CaMOptions, Eviction):
    """StreamingLLM's entries; of compacted turns, evicted values are merged into later entries.

    CaM: Cache Merging for Memory-efficient LLMs Inference (ICML 2024). An entry that leaves gives
    `p / targets` of its value to each of the next `targets` entries, with
    `p = min(1, its attention / the mean attention of these entries)`. Different here: p is the
    coefficient and not the chance of a coin, attention is what an entry received so far, and a
    document is only evicted: merging all of it at once diverges. So it shows in conversations whose
    old turns are compressed (`--tail-budget`).
    """

    name: ClassVar[str] = "cam"

    @property
    def watches(self) -> Needs:
        """The attention that entries of the conversation receive."""
        return Needs(column_mass=True)

    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        """The later, the better."""
        return recency(prefilled, entries)

    def extend(self, prefilled: Prefilled) -> FlatSegment:
        """Spill the oldest entries' values one after the other, then let them go."""
        assert prefilled.column_mass is not None, "the prefill gives what `needs` names"
        total = min(self.share(prefilled), prefilled.entries)
        values = prefilled.values.clone()
        leaving = (prefilled.entries - total) // prefilled.shape[0]
        first = 0 if prefilled.absent is None else int(prefilled.absent.max())
        for entry in range(first, first + leaving):
            spill(values, prefilled.column_mass, entry, self.targets)
        return self.compress(replace(prefilled, values=values))


def spill(values: Tensor, mass: Tensor, entry: int, targets: int) -> None:
    """Add to the next `targets` entries of `values [H, T, D]` their part of entry `entry`, in
    place.
    """
    ref = mass[:, entry + 1 : entry + 1 + targets].mean(dim=1)
    part = (mass[:, entry] / ref).nan_to_num(0.0, posinf=1.0).clamp(0, 1) / targets  # [H]
    given = part[:, None] * values[:, entry].float()
    values[:, entry + 1 : entry + 1 + targets] += given[:, None].to(values.dtype)
