"""KVzip: KV pairs that are attended to while the context is reconstructed (query-agnostic)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvchat.engine.budget import Geometry
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods import budgets
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.eviction import Eviction
from kvchat.engine.methods.needs import Needs, ReplayScore
from kvchat.engine.methods.options import AskallOptions, KVzipOptions, KVzipPlusOptions
from kvchat.engine.methods.scores import pooled_mass

FOLD_WINDOW, FOLD_KERNEL = 32, 7  # of a conversation's newest queries


@dataclass(frozen=True)
class KVzip(KVzipOptions, Eviction):
    """Keeps what the model attends to while it repeats the document, whatever will be asked.

    KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction,
    https://arxiv.org/abs/2505.23416. The best entries of all layers and heads together stay, and
    what stands before the document. Different here: scores are computed layer by layer during the
    one prefill, with one layer's entries alive; fp32 scores, chosen by count.
    """

    @property
    def replay_score(self) -> ReplayScore:
        """Which scores it goes by."""
        return ReplayScore(self.tell, self.chunk, self.weigh)

    @property
    def needs(self) -> Needs:
        return Needs(replay_scores=frozenset({self.replay_score}))

    @property
    def watches(self) -> Needs:
        """The newest queries of the conversation."""
        return Needs(queries=FOLD_WINDOW)

    def extend(self, prefilled: Prefilled) -> FlatSegment:
        """Old turns are scored by the newest queries: to replay them would be another prefill."""
        _, entries = prefilled.shape
        mass = pooled_mass(prefilled, entries, FOLD_KERNEL, "max", "mass")
        given = replace(prefilled, told={self.replay_score: mass})
        return self.reduce(given, self.budget.entries(self.priced(given.geometry)))

    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        return self._scores(prefilled)[:, :entries].clone()

    def entries(self, geometry: Geometry) -> list[int]:
        """What each layer may keep: the whole budget, until other layers compete for it."""
        return [min(self.together(geometry), geometry.full)] * geometry.layers

    def together(self, geometry: Geometry) -> int:
        return geometry.layers * self.budget.entries(self.priced(geometry))

    def worth(self, prefilled: Prefilled, segment: FlatSegment) -> Tensor:
        """The scores of the kept entries: the newest entry first, then what is protected."""
        table = self._scores(prefilled).clamp(max=torch.finfo(torch.float32).max)
        table[:, : self.sinks] = torch.finfo(torch.float32).max
        table[:, -1] = float("inf")
        at = (segment.position - prefilled.start).long()
        head = torch.arange(len(segment.lengths), device=at.device)
        return table[head.repeat_interleave(torch.tensor(segment.lengths, device=at.device)), at]

    def _scores(self, prefilled: Prefilled) -> Tensor:
        """The score of each entry by the replays, `[H, T]`."""
        assert prefilled.told is not None, "the prefill gives what `needs` names"
        return prefilled.told[self.replay_score]

    def allocate(self, scores: Tensor, total: int) -> list[int]:
        """The best scores of all heads together."""
        return budgets.adaptive(scores, total, floor=0.0)


@dataclass(frozen=True)
class KVzipPlus(KVzipPlusOptions, KVzip):
    """KVzip, weighed by what an entry can change in the layer's output.

    KVzip+ as in kvpress: attention times the norm of the projected value, over the norm of the
    attention block's input.
    """


@dataclass(frozen=True)
class Askall(AskallOptions, KVzip):
    """Keeps what the model attends to while every sentence of the document is a question to it.

    Ours: KVzip's scores, but the beginning of a sentence is put as a first question and its end as
    the answer, each by itself; attention times the norm of the projected value.
    """
