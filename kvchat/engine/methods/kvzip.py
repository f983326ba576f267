"""KVzip: KV pairs that are attended to while the context is reconstructed (query-agnostic), and
KVzap, which foretells them."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.needs import GATE, Needs, ReplayScore
from kvchat.engine.methods.options import (
    AskallOptions,
    KVzapOptions,
    KVzipOptions,
    KVzipPlusOptions,
    ToldOptions,
)
from kvchat.engine.methods.pooled import Pooled
from kvchat.engine.methods.scores import group_mass, pool, pooled_mass
from kvchat.engine.peers import ALONE, Peers

BOTH = "mass", "change"  # the scores that are added
FOLD_WINDOW, FOLD_KERNEL = 32, 7  # of a conversation's newest queries
QUESTION = 64  # queries of a question that choose
NEAR = 5  # entries that an entry is among


@dataclass(frozen=True)
class Told(ToldOptions, Pooled):
    """Keeps the entries that something tells are worth most. What stands before the document stays.

    Not a method itself: a member says where the scores come from.
    """

    @property
    @abstractmethod
    def scores(self) -> tuple[ReplayScore, ...]:
        """Which scores it goes by: of several the sum."""

    @property
    def needs(self) -> Needs:
        """The scores, and a question if there is one."""
        return Needs(queries=QUESTION, replay_scores=frozenset(self.scores))

    @property
    def watches(self) -> Needs:
        """The newest queries of the conversation."""
        return Needs(queries=FOLD_WINDOW)

    def extend(self, prefilled: Prefilled) -> FlatSegment:
        """Old turns are scored by the newest queries: a replay would be another prefill."""
        _, entries = prefilled.shape
        mass = pooled_mass(prefilled, entries, FOLD_KERNEL, "max", "mass")
        return super().extend(replace(prefilled, told=dict.fromkeys(self.scores, mass)))

    def tables(self, prefilled: Prefilled) -> tuple[Tensor, Tensor]:
        """The scores; infinite before the document.

        Within a head what stands around an entry counts too: `near` times the mean score of
        the `NEAR` entries around it; and, if a question is asked, the attention that it gives,
        times the norm of the value, as much in all as the document's scores.
        """
        assert prefilled.told is not None, "the prefill gives what `needs` names"
        table = together([prefilled.told[each] for each in self.scores], prefilled.peers)
        finite = table.masked_fill(table.isinf(), 0.0)
        within = table + self.near * pool(finite, NEAR, "avg")
        if prefilled.asked:
            wanted = group_mass(prefilled, table.shape[1])
            wanted *= prefilled.values.float().norm(dim=-1)
            share = finite.mean(dim=1) / wanted.mean(dim=1).clamp_min(1e-30)
            within = within + wanted * share[:, None]
        return table, within


def together(tables: Sequence[Tensor], peers: Peers = ALONE) -> Tensor:
    """The sum of score tables `[H, T]` of a layer, all brought to the mean of the first one over
    the heads of all `peers`.

    What is infinite in the first stays so.
    """
    if len(tables) == 1:
        return tables[0]
    first, *more = (peers.joined(table) for table in tables)
    told = first.isfinite()
    for other in more:
        first = first + other * (first[told].mean() / other[told].mean().clamp_min(1e-30))
    return peers.own(first)


@dataclass(frozen=True)
class KVzip(KVzipOptions, Told):
    """Keeps what the model attends to while it repeats the document, whatever will be asked.

    KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction,
    https://arxiv.org/abs/2505.23416. Different here: every head is sure of a part of an even share
    (`even`); attention is added to what KVzip+ makes of it (`weigh=both`); scores are computed
    layer by layer during the one prefill, with one layer's entries alive; a replay sees its own
    part of the document (`tell`); means stand for what is evicted (`means`); fp32 scores, chosen
    by count. `paper` looks, shares and weighs as the paper does, without means.
    """

    @property
    def scores(self) -> tuple[ReplayScore, ...]:
        ways = BOTH if self.weigh == "both" else (self.weigh,)
        return tuple(ReplayScore(self.tell, self.chunk, way) for way in ways)


@dataclass(frozen=True)
class KVzap(KVzapOptions, Told):
    """Keeps what a gate tells that kvzip would keep, in one prefill.

    KVzap, https://arxiv.org/abs/2601.07891: a linear map per layer from the attention block's
    normed input to the logarithm of the score, fitted to the model (`kvchat calibrate`). Different
    here: the scores are kvzip's of this program, the budget is shared out as kvzip's is, and means
    stand for what is evicted.
    """

    @property
    def scores(self) -> tuple[ReplayScore, ...]:
        return (GATE,)


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
