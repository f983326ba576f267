"""A stage after any method that ends in a flat segment: its entries learn to read like all of
them.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from kvchat.engine.budget import Geometry
from kvchat.engine.cache.segment import FlatSegment, Segment
from kvchat.engine.methods.base import Evidence, Prefilled
from kvchat.engine.methods.checks import require_known
from kvchat.engine.methods.matching import fit
from kvchat.engine.methods.needs import Needs
from kvchat.engine.methods.stage import Stage
from kvchat.engine.sizes import EVIDENCE

BIAS = 4  # bytes of it at every entry
PARTS = ("bias", "all")  # what is fitted: a bias, or also the values


@dataclass(frozen=True)
class Refit(Stage):
    """Gives the entries that `method` keeps a bias, and new values, fitted to a layer's queries.

    Fast KV Compaction via Attention Matching, https://arxiv.org/abs/2602.16284. The queries are
    those of the document's sentences asked as questions; a fit stays only in heads where queries
    that it has not seen read better with it. Entries that are missing weigh nothing, so a
    compressed document is too light beside the conversation: the bias restores its log-sum-exp.
    """

    part: str = "bias"

    def __post_init__(self) -> None:
        require_known(self, "part", PARTS)

    @property
    def name(self) -> str:
        """For messages."""
        return "refit"

    @property
    def needs(self) -> Needs:
        """The method's, and what queries read."""
        return self.method.needs | Needs(evidence=EVIDENCE)

    @property
    def settings(self) -> dict[str, Any]:
        """`refit=bias`."""
        return {"refit": self.part}

    def priced(self, geometry: Geometry) -> Geometry:
        """A bias at every entry."""
        return replace(geometry, beside=geometry.beside + BIAS)

    def noted(self, prefilled: Prefilled) -> tuple[Evidence, float]:
        """The evidence, and the logit scale."""
        retold = prefilled.retold
        assert retold is not None and retold.evidence is not None, "the reading gives it"
        return retold.evidence, prefilled.scale

    def stored(self, segment: Segment, note: tuple[Evidence, float]) -> Segment:
        """The segment's entries with a bias, and with the values that read best."""
        assert isinstance(segment, FlatSegment), f"{segment.kind} has no entries to fit"
        evidence, scale = note
        heads, dim = len(segment.lengths), segment.k.shape[1]
        q, o = (x.view(len(x), heads, -1, dim) for x in (evidence.q, evidence.o))  # [N, H, G, D]
        lse = evidence.lse.view(len(q), heads, -1)
        before = segment.bias if segment.bias is not None else segment.k.new_zeros(len(segment.k))
        bias, values = before.float().clone(), segment.v.clone()
        for head, (start, length) in enumerate(segment.entries.spans):
            own = slice(start, start + length)
            asked = q[:, head].flatten(0, 1).float()  # [n, D], n = N * G
            logits = asked @ segment.k[own].float().T * scale + before[own]  # [n, r]
            share = torch.exp(logits - lse[:, head].flatten()[:, None])
            read = o[:, head].flatten(0, 1).float()
            weight, fitted = fit(share, segment.v[own].float(), read, self.part == "all")
            bias[own] += weight.log()
            values[own] = fitted.to(values.dtype)
        return replace(segment, v=values, bias=bias)
