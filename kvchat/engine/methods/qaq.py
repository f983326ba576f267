"""QAQ: as many bits for an entry as an error of it would matter, none for some."""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp, log, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from kvchat.engine.budget import Geometry
from kvchat.engine.cache import GROUP
from kvchat.engine.cache.mixed import MixedSegment
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods import budgets
from kvchat.engine.methods.base import Method, Prefilled
from kvchat.engine.methods.eviction import first_of
from kvchat.engine.methods.needs import Needs
from kvchat.engine.methods.scores import most_mass, ranked
from kvchat.engine.methods.size_options import QAQOptions

WIDTHS = (0, 2, 4, 8, 16)  # bits that an entry may have
HALF = 0.5  # of a bit: what needs less goes
BESIDE = 24  # bytes of entry ranges for each head, of all buckets
STEPS = 40  # halvings of the range of errors
LEAST, MOST = -20.0, 20.0  # logarithms of the errors that are tried


class Reaches(NamedTuple):
    """What a layer's entries need bits for, `[H, T]` each: `r / 2e` of values if they go and if
    they stay, for eps 1; half of the range of keys."""

    absent: Tensor
    value: Tensor
    key: Tensor


@dataclass(frozen=True)
class QAQ(QAQOptions, Method):
    """Bits of each entry from an error that the output may have, in buckets of 0, 2, 4, 8 and 16.

    QAQ: Quality Adaptive Quantization for LLM KV Cache, https://arxiv.org/abs/2403.04643. A value
    may be off by `sqrt(12 / T) * eps / a`, where a is the most attention that any of the last
    `rows` queries gives it, a key by `sqrt(12 / |q| * ln(T^3 / (T - 1) * eps^2 + 1))`; numbers
    of range r that may be off by e need `log2(r / 2e + 1)` bits. An entry has the bits that its key
    or its value needs, whichever are more, and goes where half a bit would do to tell
    its value from none.
    Different here: the budget, in bytes, finds eps (`mode=eps` gives it); buckets, so that
    attention is a few dense sets; keys are stored per channel, so their range is that around the
    mean of each channel; the authors' outliers, 1 % of all numbers, are not set apart; `norm=300`
    is theirs, here the norm of the observed queries is taken.
    """

    @property
    def needs(self) -> Needs:
        return Needs(queries=self.rows)

    @property
    def kind(self) -> str:
        return "mixed"

    def entries(self, geometry: Geometry) -> list[int]:
        """Whole entries that take as much as the layer may."""
        return [self.budget.entries(geometry)] * geometry.layers

    def compress(self, prefilled: Prefilled) -> MixedSegment:
        total, geometry = self.share(prefilled), prefilled.geometry
        reaches = self.ranges(prefilled)
        if self.mode == "eps":
            bits = self.buckets(prefilled, reaches, self.eps, total)
        elif total >= geometry.full:
            bits = torch.full_like(reaches.key, 16, dtype=torch.long)
        else:
            room = total * geometry.plain_bytes - BESIDE * (geometry.heads + 1)
            low, high = LEAST, MOST
            for _ in range(STEPS):  # the least error whose entries fit
                middle = (low + high) / 2
                bits = self.buckets(prefilled, reaches, 2.0**middle, total)
                low, high = (low, middle) if cost(bits, geometry) <= room else (middle, high)
            bits = self.buckets(prefilled, reaches, 2.0**high, total)
        bits = prefilled.own(bits)
        kept = bits > 0
        return MixedSegment.of(prefilled.keep(kept), bits[kept], WIDTHS[1:])

    def extend(self, prefilled: Prefilled) -> FlatSegment:
        """Turns stay in the model's precision: those that are attended to most."""
        heads, tokens = prefilled.heads, prefilled.shape[1]
        total = min(self.share(prefilled), prefilled.entries)
        recent = min(self.recent, max(1, total // heads // 2))
        scores = most_mass(prefilled, tokens - recent)
        scores.masked_fill_(~prefilled.exists[:, : tokens - recent], budgets.ABSENT)
        existing = prefilled.every((scores != budgets.ABSENT).sum(dim=1)).tolist()
        every = budgets.uniform(min(total - heads * recent, sum(existing)), existing)
        counts = prefilled.counts(every)
        return prefilled.keep(first_of(prefilled, ranked(scores), counts, recent))

    def ranges(self, prefilled: Prefilled) -> Reaches:
        """What a layer's entries need bits for, those of all ranks."""
        _, tokens = prefilled.shape
        values, keys = prefilled.values.float(), prefilled.keys.float()
        allowed = 2 * sqrt(12 / tokens) / most_mass(prefilled, tokens).clamp_min(1e-30)
        around = keys - keys.mean(dim=1, keepdim=True)
        spans = [each.amax(dim=-1) - each.amin(dim=-1) for each in (values, around)]
        absent = 2 * values.abs().amax(dim=-1)
        found = absent / allowed, spans[0] / allowed, spans[1] / 2
        return Reaches(*map(prefilled.every, found))

    def key_error(self, prefilled: Prefilled, eps: float) -> float:
        """How far a key may be off."""
        tokens = max(prefilled.shape[1], 2)
        norms = prefilled.queries.float().norm(dim=-1)
        norm = self.norm or float(prefilled.every(norms, 1).mean())
        inner = 3 * log(tokens) - log(tokens - 1) + 2 * log(eps)
        large = inner if inner > 30 else log(exp(inner) + 1)
        return sqrt(12 / max(norm, 1e-9) * large)

    def buckets(self, prefilled: Prefilled, reaches: Reaches, eps: float, total: int) -> Tensor:
        """Bits `[H, T]` of each entry at an allowed error, 0 for those that go.

        Newest entries and sinks stay whole, at most half of an even share of `total` of the former.
        """
        tokens, each = prefilled.shape[1], total // prefilled.heads
        recent = min(self.recent, max(1, each // 2), tokens)
        for_key = torch.log2(reaches.key / self.key_error(prefilled, eps) + 1)
        needed = torch.maximum(torch.log2(reaches.value / eps + 1), for_key)
        widths = torch.tensor(WIDTHS[1:], device=needed.device)
        bits = widths[torch.bucketize(needed, widths.float()).clamp(max=len(widths) - 1)]
        bits = bits.masked_fill(torch.log2(reaches.absent / eps + 1) < HALF, 0)
        whole = torch.zeros_like(bits, dtype=torch.bool)
        whole[:, : max(0, min(self.sinks, each - recent))] = True
        whole[:, tokens - recent :] = True
        return self._whole_groups(bits.masked_fill(whole, 16), needed)

    def _whole_groups(self, bits: Tensor, needed: Tensor) -> Tensor:
        """Let the neediest of a width go up to the next one, so that 32s are left in each head."""
        for width, wider in pairwise(WIDTHS[1:]):
            own = bits == width
            over = own.sum(dim=1) % GROUP
            rank = ranked(needed.masked_fill(~own, -1.0)).argsort(dim=1)
            bits = bits.masked_fill(own & (rank < over[:, None]), wider)
        return bits


def cost(bits: Tensor, geometry: Geometry) -> float:
    """Bytes of entries with `bits [H, T]`."""
    widths = [(width, int((bits == width).sum())) for width in WIDTHS[1:]]
    return sum(count * replace(geometry, bits=width).entry_bytes for width, count in widths)
