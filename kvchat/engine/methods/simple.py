"""Methods with one plain score: recency, the length of a key, the last query's attention, and the
attention of all queries."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.eviction import Eviction
from kvchat.engine.methods.needs import Needs
from kvchat.engine.methods.options import H2OOptions, KnormOptions, TOVAOptions
from kvchat.engine.methods.scores import observed_mass, recency


@dataclass(frozen=True)
class StreamingLLM(Eviction):
    """Keeps the first `sinks` tokens and the most recent ones, the same in every head.

    Efficient Streaming Language Models with Attention Sinks, https://arxiv.org/abs/2309.17453.
    Different here: keys keep their true positions instead of being re-indexed inside the cache,
    since the document is read exactly and fits the window.
    """

    name: ClassVar[str] = "streamingllm"

    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        """The later, the better."""
        return recency(prefilled, entries)


@dataclass(frozen=True)
class Knorm(KnormOptions, Eviction):
    """Keeps the entries with the smallest key norms, which tend to be attended most.

    A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression,
    https://arxiv.org/abs/2406.11430. Different here: sinks and the newest entry always stay.
    """

    name: ClassVar[str] = "knorm"

    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        """The shorter, the better."""
        norm: Tensor = prefilled.keys[:, :entries].float().norm(dim=-1)
        return -norm


@dataclass(frozen=True)
class TOVA(TOVAOptions, Eviction):
    """Keeps what the last token attends to, on the mean of all heads of a layer.

    Transformers are Multi-State RNNs, https://arxiv.org/abs/2401.06104. Different here: applied
    once, after the document; the authors drop an entry at every step.
    """

    name: ClassVar[str] = "tova"

    @property
    def needs(self) -> Needs:
        """The last query."""
        return Needs(queries=1)

    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        """The same for every head, so every head keeps the same tokens."""
        heads, _ = prefilled.shape
        return observed_mass(prefilled, entries).mean(dim=0).repeat(heads, 1)


@dataclass(frozen=True)
class H2O(H2OOptions, Eviction):
    """Keeps the newest entries and those that all queries so far attended to most.

    H2O: Heavy-Hitter Oracle, https://arxiv.org/abs/2306.14048. `recent` is the share of the budget
    that goes to the newest entries. `average` divides an entry's sum by the number of queries that
    could see it, which early entries need not fear then. Different here: sums over the whole
    document are exact and computed in a second pass from the known log-sum-exps, without a T x T
    matrix; they are summed over the query heads of a KV head.
    """

    name: ClassVar[str] = "h2o"

    @property
    def needs(self) -> Needs:
        """Column sums over all queries."""
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
