"""LESS: what a sparse method lets go of stays in a state of constant size."""

from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

from kvchat.engine.budget import Geometry
from kvchat.engine.cache.low_rank import LowRankSegment, State
from kvchat.engine.cache.segment import FlatSegment, Segment
from kvchat.engine.methods.base import Method, Prefilled
from kvchat.engine.methods.eviction import Eviction
from kvchat.engine.methods.needs import Needs
from kvchat.engine.methods.size_options import LessOptions
from kvchat.engine.methods.specs import load
from kvchat.engine.sizes import RANK


@dataclass(frozen=True)
class Less(LessOptions, Method):
    """The entries of a `sparse` method, and a low-rank state of all the others.

    Get More with LESS, https://arxiv.org/abs/2402.09398: with features phi of queries and psi of
    keys, of `RANK` numbers each, the state is `H = sum psi(k) v^T` and `z = sum psi(k)` of what was
    evicted, and attention `(sum exp(q k) v + phi(q) H) / (sum exp(q k) + phi(q) z)`.
    `phi(q) = |g(g(q A) B)|` and `psi(k) = |g(g(k A) B) C|` with `g` GELU are fitted to the model
    (`kvchat calibrate --for less`). The budget pays for the state; where that would take more than
    half of it there is none.
    Different here: a KV head has one state for its query heads; it is made once, after the
    document; the compressed turns of a conversation have none; hidden features are fewer.
    """

    @cached_property
    def inner(self) -> Eviction:
        """The method that says what stays."""
        stored = {"bits": self.bits, "residual": self.residual}
        made: Eviction = load(self.sparse)(budget=self.budget, sinks=self.sinks, **stored)
        return made

    @property
    def needs(self) -> Needs:
        return self.inner.needs | Needs(features=True)

    @property
    def watches(self) -> Needs:
        return self.inner.watches

    def entries(self, geometry: Geometry) -> list[int]:
        """Entries beside the state of each layer."""
        geometry = self.priced(geometry)
        totals = self.inner.entries(geometry)
        return [total - paid(total, geometry) for total in totals]

    def compress(self, prefilled: Prefilled) -> LowRankSegment | FlatSegment:
        """What stays, and the state of the rest."""
        kept = self.inner.kept(prefilled, self.share(prefilled))
        segment, geometry = prefilled.keep(kept), self.priced(prefilled.geometry)
        total = self.inner.entries(geometry)[prefilled.layer]
        if not paid(total, geometry):
            return segment
        assert prefilled.features is not None, "the engine has refused the method without maps"
        state = State.of(prefilled.features, prefilled.keys, prefilled.values, ~kept)
        return LowRankSegment(segment, state)

    def stored(self, segment: Segment) -> Segment:
        """The entries in their bits; the state stays as it is."""
        if isinstance(segment, LowRankSegment):
            entries = super().stored(segment.entries)
            return replace(segment, entries=entries)  # type: ignore[arg-type]
        return super().stored(segment)

    def extend(self, prefilled: Prefilled) -> Segment:
        """Turns are evicted as the sparse method does, without a state."""
        return self.inner.extend(prefilled)


def paid(total: int, geometry: Geometry) -> int:
    """Entries that a layer's state takes the place of; 0 where there is none."""
    if total >= geometry.full:
        return 0
    state = ceil(4 * RANK * (geometry.dim + 1) * geometry.heads / geometry.entry_bytes)
    return state if 2 * state <= total else 0
