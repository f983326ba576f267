"""KVMerger: neighbouring entries with similar keys become one, a *slot*. Everything is computed on
all entries of a layer at once; `links.py` has links and runs."""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.budget import Geometry
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods import budgets
from kvchat.engine.methods.base import Method, Prefilled
from kvchat.engine.methods.links import best_links, free_links, links_above, run_of, similarity
from kvchat.engine.methods.needs import Needs
from kvchat.engine.methods.size_options import KVMergerOptions
from kvchat.errors import KvchatError

LEAST_SIGMA = 1e-6


@dataclass(frozen=True)
class KVMerger(KVMergerOptions, Method):
    """Merges runs of neighbouring entries whose keys are similar; sinks, heavy and recent entries
    stay.

    Model Tells You Where to Merge: Adaptive KV Cache Merging for LLMs on Long-Context Tasks,
    https://arxiv.org/abs/2407.08454. `mode=eps` links neighbours whose cosine exceeds `eps`, as the
    paper does, and finds its own size; `mode=budget` takes the strongest links of all heads of a
    layer until exactly the budget is left (and evicts the least attended slots where `longest`
    leaves too many). `recent` and `heavy` are shares of the entries that are kept, `longest` bounds
    a run (0: any length), `skip=first+last` leaves layers whole and lets the others make it up.
    `value=votes` gives a merged entry the weight of its tokens in the softmax, `paper` multiplies
    its value by them. Different here: weights fall with the mean distance inside a run unless
    `sigma` is given (the paper's best is 5), since the printed sigma refers to itself.
    """

    @property
    def needs(self) -> Needs:
        return Needs(column_mass=True)

    @property
    def extra(self) -> int:
        """Bytes beside an entry: its count, and with votes its bias."""
        return 8 if self.value == "votes" else 4

    def entries(self, geometry: Geometry) -> list[int]:
        """Entries of each layer; skipped layers keep all, the others share what is left."""
        geometry = self.priced(geometry)
        total, layers = self.budget.entries(geometry, self.extra), geometry.layers
        if total == geometry.full:
            return [total] * layers
        first, last = map(int, self.skip.split("+"))
        left = layers * total - (first + last) * geometry.full
        others = layers - first - last
        if others == 0 or left < others * geometry.heads:
            least = ((first + last) * geometry.full + others * geometry.heads) / layers
            each = -int(-least // geometry.heads)
            raise KvchatError(
                "usage",
                f"kvmerger: skip={self.skip} leaves {first + last} of {layers} layers whole; a "
                f"budget of {self.budget} has no entries for the others",
                f"--budget {self.budget.of_entries(each, geometry, self.extra)} or more",
                "kvmerger:skip=0+0",
                entries=max(left, 0),
                needed=others * geometry.heads,
            )
        shares = budgets.uniform(left, [geometry.full] * others)
        return [geometry.full] * first + shares + [geometry.full] * last

    def compress(self, prefilled: Prefilled) -> FlatSegment:
        """Runs of similar entries, one entry each."""
        heads, _ = prefilled.shape
        total = min(self.share(prefilled), prefilled.entries)
        if total == prefilled.entries and self.mode == "budget" and prefilled.count is None:
            return prefilled.keep_all()
        mass = prefilled.column_mass
        assert mass is not None, "the prefill gives what `needs` names"
        protected = self._protected(prefilled, mass, total)
        delta, free = similarity(prefilled.keys), free_links(protected | ~prefilled.exists)
        if self.mode == "eps":
            links = links_above(delta, free, self.eps, self.longest)
        else:
            most = prefilled.entries - total, self.longest
            links = prefilled.own(best_links(prefilled.every(delta), prefilled.every(free), *most))
        slots = merge(prefilled, links, mass, protected, self.sigma, self.value)
        if self.mode == "budget":
            (mass, own), (guarded, _) = map(prefilled.peers.ragged, (slots.mass, slots.guarded))
            if len(mass) > total:
                slots = slots.where(_best(mass, guarded, total)[own])
        return slots.segment(heads, prefilled.span, self.value)

    def _protected(self, prefilled: Prefilled, mass: Tensor, total: int) -> Tensor:
        """Sinks, heavy and recent entries `[H, T]`: shares of an even share of the budget."""
        heads, tokens = prefilled.shape
        each = total // prefilled.heads
        recent, heavy = max(1, int(self.recent * each)), int(self.heavy * each)
        sinks = min(self.sinks, max(each - recent - heavy, 0)) if prefilled.position is None else 0
        protected = torch.zeros(heads, tokens, dtype=torch.bool, device=mass.device)
        protected[:, :sinks] = True
        protected[:, tokens - min(recent, tokens) :] = True
        heaviest = mass.masked_fill(protected | ~prefilled.exists, budgets.ABSENT)
        top = torch.sort(heaviest, dim=1, descending=True, stable=True).indices[:, :heavy]
        return protected.scatter(1, top, True) & prefilled.exists


def _best(mass: Tensor, guarded: Tensor, total: int) -> Tensor:
    """Which `total` slots stay: guarded ones, then the most attended."""
    order = torch.sort(mass.masked_fill(guarded, float("inf")), descending=True, stable=True)
    kept = torch.zeros_like(guarded)
    kept[order.indices[:total]] = True
    return kept


@dataclass(frozen=True)
class Slots:
    """Merged entries before some of them are kept: `k, v [S, D]`, and what belongs to each.

    `head, position, count [S]`: where a slot stands, its pivot's position, its tokens; `mass [S]`
    the attention of all its entries; `guarded [S]` whether one of its entries is protected.
    """

    k: Tensor
    v: Tensor
    head: Tensor
    position: Tensor
    count: Tensor
    mass: Tensor
    guarded: Tensor

    def __len__(self) -> int:
        return len(self.head)

    def where(self, kept: Tensor) -> "Slots":
        """The slots for which `kept [S]` is true."""
        return Slots(*(getattr(self, name)[kept] for name in self.__dataclass_fields__))

    def segment(self, heads: int, span: tuple[int, int], value: str) -> FlatSegment:
        """A flat segment; with `votes` a slot's logit is raised by the log of its tokens."""
        bias = self.count.float().log() if value == "votes" else None
        lengths = torch.bincount(self.head, minlength=heads).tolist()
        count = self.count.to(torch.int32)
        return FlatSegment.of(self.k, self.v, lengths, self.position, span, bias, count)


def merge(
    prefilled: Prefilled, links: Tensor, mass: Tensor, protected: Tensor, sigma: float, value: str
) -> Slots:
    """Merge the runs that `links [H, T]` hold together, around their most attended entries.

    `g_i = exp(-|k_p - k_i|^2 / 2 sigma^2)` with the pivot p, the entry of the largest `mass [H,
    T]`; an entry that stands for n tokens weighs n g. Keys are means with these weights; so are
    values, times the number of tokens if `value` is `paper` (algorithm 2). `sigma` is that of
    `_gaussian`.
    """
    heads, tokens, _ = prefilled.keys.shape
    device = prefilled.keys.device
    run = run_of(links)
    lengths = torch.bincount(run)
    a = mass.flatten().float()
    pivot = _first_best(a, run, lengths)
    count = torch.ones(heads * tokens, device=device)
    if prefilled.count is not None:
        count = prefilled.count.flatten().float()
    weight = _gaussian(_distance(prefilled.keys, pivot[run]), run, lengths, sigma) * count
    weight = weight / _sums(weight, lengths)[run]
    members = _sums(count, lengths)
    position = prefilled.position
    if position is None:
        end = prefilled.start + tokens
        position = torch.arange(prefilled.start, end, device=device).expand(heads, -1)
    # the value of an entry that stands for n tokens was stored times n
    scale = (1 / count, members) if value == "paper" else (None, None)
    slots = Slots(
        k=_merged(prefilled.keys, weight, pivot, lengths),
        v=_merged(prefilled.values, weight, pivot, lengths, *scale),
        head=pivot // tokens,
        position=position.flatten()[pivot],
        count=members,
        mass=_sums(a, lengths),
        guarded=_sums(protected.flatten().float(), lengths) > 0,
    )
    return slots.where(prefilled.exists.flatten()[pivot])


def _distance(keys: Tensor, pivot: Tensor) -> Tensor:
    """Distance of every entry from the pivot of its run, `[H*T]`; `pivot [H*T]` entry numbers."""
    tokens = keys.shape[1]
    parts = [
        (entries.float() - entries.float()[at - head * tokens]).norm(dim=-1)
        for head, (entries, at) in enumerate(zip(keys, pivot.view(-1, tokens), strict=True))
    ]
    return torch.cat(parts)


def _merged(
    entries: Tensor,
    weight: Tensor,
    pivot: Tensor,
    lengths: Tensor,
    before: Tensor | None = None,
    after: Tensor | None = None,
) -> Tensor:
    """Weighted sums of the runs of `entries [H, T, D]`, `[S, D]`; single entries as they are.

    `before [H*T]` scales entries, `after [S]` sums; runs do not cross heads.
    """
    heads, tokens, dim = entries.shape
    if before is not None:
        weight = weight * before
    runs = torch.bincount(pivot // tokens, minlength=heads).tolist()
    parts = [
        ops.merge_entries(part, part_weight, part_lengths)
        for part, part_weight, part_lengths in zip(
            entries, weight.view(heads, tokens), torch.split(lengths, runs), strict=True
        )
    ]
    merged = torch.cat(parts)
    if after is not None:
        merged *= after[:, None].to(merged.dtype)
    single = lengths == 1  # bit-equal, whatever the weights
    merged[single] = entries.reshape(-1, dim)[pivot[single]]
    return merged


def _sums(x: Tensor, lengths: Tensor) -> Tensor:
    return torch.segment_reduce(x.float(), "sum", lengths=lengths)


def _first_best(a: Tensor, run: Tensor, lengths: Tensor) -> Tensor:
    """The entry of the largest `a` in each run; among equals the first. `[S]` int64."""
    best = torch.segment_reduce(a, "max", lengths=lengths)
    entries = torch.arange(len(a), device=a.device)
    candidates = entries.masked_fill(a != best[run], len(a)).double()
    return torch.segment_reduce(candidates, "min", lengths=lengths).long()


def _gaussian(distance: Tensor, run: Tensor, lengths: Tensor, sigma: float) -> Tensor:
    """`exp(-d^2 / 2 sigma^2)` of every entry; for `sigma` 0 with its run's `sum d / sqrt(2) n`."""
    width = torch.full_like(lengths, sigma, dtype=torch.float32)
    if not sigma:
        width = _sums(distance, lengths) / (sqrt(2) * lengths)
    return torch.exp(-(distance / width[run].clamp_min(LEAST_SIGMA)).square() / 2)
