"""KVzip: entries that are needed to tell the document again."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from kvchat.engine.budget import Geometry
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods import budgets
from kvchat.engine.methods.base import Prefilled, Retold
from kvchat.engine.methods.checks import require_known, require_least, require_most, require_share
from kvchat.engine.methods.eviction import Eviction
from kvchat.engine.methods.needs import ASK, REPEAT, Needs, Telling
from kvchat.engine.methods.scores import pooled_mass
from kvchat.engine.sizes import CHUNK, REPLAY

FOLD_WINDOW, FOLD_KERNEL = 32, 7  # of a conversation's newest queries
TELLS, WEIGHINGS = (REPEAT, ASK), ("mass", "value", "change")


@dataclass(frozen=True)
class KVzip(Eviction):
    """Keeps what the model looks at while it repeats the document, whatever will be asked.

    KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction,
    https://arxiv.org/abs/2505.23416. The best entries of all layers and heads together stay, and
    what stands before the document. Different here: scores are computed layer by layer during the
    one reading, with one layer's entries alive. Until all layers are read each keeps at most `over`
    times an even share (1: every layer keeps just that); fp32 scores, chosen by count.
    """

    tell: str = REPEAT
    chunk: int = CHUNK
    weigh: str = "mass"
    demote: float = 1.0
    name: ClassVar[str] = "kvzip"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(self, "tell", TELLS)
        require_known(self, "weigh", WEIGHINGS)
        require_share(self, "demote", 1)
        require_least(self, "chunk", 32, CHUNK)
        require_most(self, "chunk", REPLAY, CHUNK)

    @property
    def telling(self) -> Telling:
        """Which scores it goes by."""
        return Telling(self.tell, self.chunk, self.weigh)

    @property
    def needs(self) -> Needs:
        """Replays of the document."""
        return Needs(tellings=frozenset({self.telling}))

    @property
    def watches(self) -> Needs:
        """The newest queries of the conversation."""
        return Needs(queries=FOLD_WINDOW)

    @property
    def pools(self) -> bool:
        """The best entries of all layers stay."""
        return True

    def extend(self, prefilled: Prefilled) -> FlatSegment:
        """Folded turns are scored by the newest queries: to repeat them is another reading."""
        _, entries = prefilled.shape
        mass = pooled_mass(prefilled, entries, FOLD_KERNEL, "max", "mass")
        none = torch.zeros(entries, dtype=torch.bool, device=mass.device)
        retold = Retold({self.telling: mass}, None, none)
        given = replace(prefilled, retold=retold)
        return self.reduce(given, self.budget.entries(given.geometry))

    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        """The first entries' scores."""
        return self._scores(prefilled)[:, :entries]

    def entries(self, geometry: Geometry) -> list[int]:
        """What each layer may keep: the whole budget, until other layers compete for it."""
        return [min(self.pool(geometry), geometry.full)] * geometry.layers

    def pool(self, geometry: Geometry) -> int:
        """The budget of all layers."""
        return geometry.layers * self.budget.entries(geometry)

    def worth(self, prefilled: Prefilled, segment: FlatSegment) -> Tensor:
        """The scores of the entries that were kept: the newest entry first, then what is
        protected.
        """
        table = self._scores(prefilled).clamp(max=torch.finfo(torch.float32).max)
        table[:, : self.sinks] = torch.finfo(torch.float32).max
        table[:, -1] = float("inf")
        at = (segment.position - prefilled.start).long()
        head = torch.arange(len(segment.lengths), device=at.device)
        return table[head.repeat_interleave(torch.tensor(segment.lengths, device=at.device)), at]

    def _scores(self, prefilled: Prefilled) -> Tensor:
        """What the replays made of each entry, `[H, T]`."""
        assert prefilled.retold is not None, "the reading gives what `needs` names"
        scores = prefilled.retold.scores[self.telling]
        return scores * torch.where(prefilled.retold.structural, self.demote, 1.0)

    def allocate(self, scores: Tensor, total: int) -> list[int]:
        """The best scores of all heads together."""
        return budgets.adaptive(scores, total, floor=0.0)


@dataclass(frozen=True)
class KVzipPlus(KVzip):
    """KVzip, weighed by what an entry can change in the layer's output.

    KVzip+ as in kvpress: attention times the norm of the projected value, over the norm of the
    attention block's input.
    """

    weigh: str = "change"
    name: ClassVar[str] = "kvzip+"


@dataclass(frozen=True)
class Askall(KVzip):
    """Keeps what the model looks at while every sentence of the document is a question to it.

    Ours: KVzip's scores, but the beginning of a sentence is put as a first question and its end as
    the answer, each by itself; attention times the norm of the projected value.
    """

    tell: str = ASK
    chunk: int = REPLAY
    weigh: str = "value"
    name: ClassVar[str] = "askall"
