"""Methods with one plain score, or none: everything, recency, the length of a key, the last query's
attention, and the attention of all queries."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvchat.engine.budget import Budget, Geometry
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods.base import Method, Prefilled
from kvchat.engine.methods.eviction import Eviction
from kvchat.engine.methods.needs import Needs
from kvchat.engine.methods.options import (
    EVERYTHING,
    CaMOptions,
    H2OOptions,
    KnormOptions,
    Stored,
    TOVAOptions,
)
from kvchat.engine.methods.scores import observed_mass


@dataclass(frozen=True)
class Full(Stored, Method):
    """Keeps every entry. Its budget is always 100 %."""

    @property
    def budget(self) -> Budget:
        return EVERYTHING

    def entries(self, geometry: Geometry) -> list[int]:
        return [geometry.full] * geometry.layers

    def compress(self, prefilled: Prefilled) -> FlatSegment:
        return prefilled.keep_all()


@dataclass(frozen=True)
class StreamingLLM(Eviction):
    """Keeps the first `sinks` tokens and the most recent ones, the same in every head.

    Efficient Streaming Language Models with Attention Sinks, https://arxiv.org/abs/2309.17453.
    Different here: keys keep their true positions instead of being re-indexed inside the cache,
    since the document is read exactly and fits the window.
    """

    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        age = torch.arange(entries, dtype=torch.float32, device=prefilled.keys.device)
        return age.repeat(prefilled.shape[0], 1)


@dataclass(frozen=True)
class Knorm(KnormOptions, Eviction):
    """Keeps the entries with the smallest key norms, which tend to be attended most.

    A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression,
    https://arxiv.org/abs/2406.11430. Different here: sinks and the newest entry always stay.
    """

    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        norm: Tensor = prefilled.keys[:, :entries].float().norm(dim=-1)
        return -norm


@dataclass(frozen=True)
class TOVA(TOVAOptions, Eviction):
    """Keeps what the last token attends to, on the mean of all heads of a layer.

    Transformers are Multi-State RNNs, https://arxiv.org/abs/2401.06104. Different here: applied
    once, after the document; the authors drop an entry at every step.
    """

    @property
    def needs(self) -> Needs:
        return Needs(queries=1)

    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        """The same for every head, so every head keeps the same tokens."""
        heads, _ = prefilled.shape
        return prefilled.every(observed_mass(prefilled, entries)).mean(dim=0).repeat(heads, 1)


@dataclass(frozen=True)
class H2O(H2OOptions, Eviction):
    """Keeps the newest entries and those that all queries so far attended to most.

    H2O: Heavy-Hitter Oracle, https://arxiv.org/abs/2306.14048. `recent` is the share of the budget
    that goes to the newest entries. `average` divides an entry's sum by the number of queries that
    could see it, which early entries need not fear then. Different here: sums over the whole
    document are exact and computed in a second pass from the known log-sum-exps, without a T x T
    matrix; they are summed over the query heads of a KV head.
    """

    @property
    def needs(self) -> Needs:
        return Needs(column_mass=True)

    def newest(self, each: int) -> int:
        """The recent share of the budget, and the newest entry in any case."""
        return min(each, max(1, int(self.recent * each)))

    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        """The attention that an entry has received."""
        assert prefilled.column_mass is not None, "the prefill gives what `needs` names"
        mass = prefilled.column_mass[:, :entries].clone()
        if self.average:
            tokens = prefilled.shape[1]
            mass /= tokens - torch.arange(entries, device=mass.device)
        return mass


@dataclass(frozen=True)
class CaM(CaMOptions, H2O):
    """H2O's entries; the values of the others are merged into those that stay.

    CaM: Cache Merging for Memory-efficient LLMs Inference (ICML 2024). Each of the next `targets`
    entries that stay gets `p / targets` of the value of an evicted one, with
    `p = min(1, its attention / the mean attention of these entries)`. Different here: p is the
    coefficient and not the chance of a coin, attention is what an entry received so far, and all of
    a document is evicted at once.
    """

    def reduce(self, prefilled: Prefilled, total: int) -> FlatSegment:
        kept, mass, values = self.kept(prefilled, total), prefilled.column_mass, prefilled.values
        assert mass is not None, "the prefill gives what `needs` names"
        gone = prefilled.exists & ~kept
        heads = zip(values, mass, kept, gone, strict=True)
        merged = [merge_values(*head, self.targets) for head in heads]
        return replace(prefilled, values=torch.stack(merged)).keep(kept)


def merge_values(values: Tensor, mass: Tensor, kept: Tensor, gone: Tensor, targets: int) -> Tensor:
    """`values [T, D]` of a head; of every entry that is `gone [T]` a part is in the next `targets`
    entries that are `kept [T]`. `mass [T]` is the attention that each has received."""
    stays, leaves = kept.nonzero()[:, 0], gone.nonzero()[:, 0]
    first = torch.searchsorted(stays, leaves)  # the next entry that stays
    last = (first + targets).clamp(max=len(stays))
    sums = torch.cat((mass.new_zeros(1), mass[stays])).double().cumsum(dim=0)
    mean = (sums[last] - sums[first]) / (last - first)
    part = (mass[leaves] / mean).nan_to_num(0.0, posinf=1.0).clamp(0, 1) / targets
    given = part[:, None] * values[leaves].double()
    steps = given.new_zeros(len(stays) + 1, values.shape[1])  # what begins and ends at an entry
    steps.index_add_(0, first, given).index_add_(0, last, given, alpha=-1)
    values = values.clone()
    values[stays] += steps.cumsum(dim=0)[:-1].to(values.dtype)
    return values
