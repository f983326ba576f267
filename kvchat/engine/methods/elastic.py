"""Elastic Cache: entries that are attended to little join the nearest of the others."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.budget import Geometry
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods import budgets
from kvchat.engine.methods.base import Method, Prefilled
from kvchat.engine.methods.needs import Needs
from kvchat.engine.methods.scores import ranked
from kvchat.engine.methods.size_options import ElasticOptions


@dataclass(frozen=True)
class Elastic(ElasticOptions, Method):
    """Keeps anchors, the tokens that are attended to most; the others join the nearest of them.

    Efficient Inference of Vision Instruction-Following Models with Elastic Cache,
    https://arxiv.org/abs/2407.18121, for text. Importance is the attention that a token gets from
    all queries, on the mean of a layer's heads, so all heads have the same anchors; first and
    newest tokens are among them. Keys and values of an anchor become the means of what joined it,
    of two anchors that are equally near the earlier one. Different here: a merged entry counts in
    the softmax as the tokens that it stands for (`value=votes`), not once (`plain`); nothing is
    taken away while an answer is decoded.
    """

    @property
    def needs(self) -> Needs:
        return Needs(column_mass=True)

    @property
    def extra(self) -> int:
        """Bytes beside an entry: its count, and with votes its bias."""
        return 8 if self.value == "votes" else 4

    def entries(self, geometry: Geometry) -> list[int]:
        geometry = self.priced(geometry)
        return [self.budget.entries(geometry, self.extra)] * geometry.layers

    def compress(self, prefilled: Prefilled) -> FlatSegment:
        total = min(self.share(prefilled), prefilled.entries)
        if total == prefilled.entries and prefilled.count is None:
            return prefilled.keep_all()
        mass = prefilled.column_mass
        assert mass is not None, "the prefill gives what `needs` names"
        heads, tokens = prefilled.shape
        existing = prefilled.every(prefilled.exists.sum(dim=1)).tolist()
        counts = prefilled.counts(budgets.uniform(total, existing))
        importance = prefilled.every(mass).mean(dim=0).repeat(heads, 1)
        each = total // prefilled.heads
        recent = min(self.recent, max(1, each // 2))
        if prefilled.position is None:  # a document, not a conversation
            importance[:, : min(self.sinks, each - recent)] = float("inf")
        importance[:, tokens - recent :] = float("inf")
        importance.masked_fill_(~prefilled.exists, budgets.ABSENT)
        order = ranked(importance)
        parts = [
            self._merged(prefilled, head, torch.sort(order[head, :count]).values)
            for head, count in enumerate(counts)
        ]
        k, v, position, members = (torch.cat(each) for each in zip(*parts, strict=True))
        bias = members.log() if self.value == "votes" else None
        return FlatSegment.of(k, v, counts, position, prefilled.span, bias, members.int())

    def _merged(
        self, prefilled: Prefilled, head: int, anchors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keys, values and positions of a head's anchors, and how many tokens each stands for."""
        tokens = prefilled.shape[1]
        number = torch.zeros(tokens, dtype=torch.long, device=anchors.device)
        number[(anchors[:-1] + anchors[1:]).div(2, rounding_mode="floor") + 1] = 1
        owner = number.cumsum(dim=0)
        weight = prefilled.exists[head].float()
        if prefilled.count is not None:
            weight = weight * prefilled.count[head]
        lengths = torch.bincount(owner, minlength=len(anchors))
        members = torch.segment_reduce(weight, "sum", lengths=lengths)
        share = weight / members[owner]
        k, v = (
            ops.merge_entries(each[head], share, lengths)
            for each in (prefilled.keys, prefilled.values)
        )
        alone = members == 1  # as it was
        k[alone], v[alone] = (x[head, anchors[alone]] for x in (prefilled.keys, prefilled.values))
        places = prefilled.position
        at = anchors + prefilled.start if places is None else places[head, anchors]
        return k, v, at, members
