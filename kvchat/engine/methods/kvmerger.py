"""KVMerger: neighbouring entries with similar keys become one."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvchat.engine.budget import DEFAULT_BUDGET, Budget, Geometry
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods import budgets
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.checks import require_known, require_least, require_share
from kvchat.engine.methods.evict import keep_all
from kvchat.engine.methods.merge import (
    SIGMAS,
    VALUES,
    best_links,
    free_links,
    links_above,
    merge,
    similarity,
)
from kvchat.engine.methods.needs import Needs
from kvchat.engine.methods.scores import group_mass
from kvchat.errors import KvchatError

MODES = ("budget", "eps")
SCORES = ("column", "window")
EVERYTHING = Budget(fraction=1.0)


@dataclass(frozen=True)
class KVMerger:
    """Merges runs of neighbouring entries whose keys are similar; sinks, heavy and recent entries
    stay.

    Model Tells You Where to Merge: Adaptive KV Cache Merging for LLMs on Long-Context Tasks,
    https://arxiv.org/abs/2407.08454. `mode=eps` links neighbours whose cosine exceeds `eps`, as the
    paper does, and finds its own size; `mode=budget` takes the strongest links of all heads of a
    layer until exactly the budget is left (and evicts the least attended slots where `longest`
    leaves too many). `recent` and `heavy` are shares of the entries that are kept, `longest` bounds
    a run (0: any length), `skip=first+last` leaves layers whole and lets the others make it up.
    `value=votes` gives a merged entry the weight of its tokens in the softmax, `paper` multiplies
    its value by them. `score=window` takes the attention of the last `window` queries instead of
    all. Different here: weights fall with the mean distance inside a run (`sigma`), since the
    printed sigma refers to itself.
    """

    budget: Budget = DEFAULT_BUDGET
    mode: str = "budget"
    eps: float = 0.75
    recent: float = 0.23
    heavy: float = 0.06
    sinks: int = 4
    longest: int = 16
    skip: str = "auto"
    sigma: str = "mean_dist"
    value: str = "votes"
    score: str = "column"
    window: int = 64
    name: ClassVar[str] = "kvmerger"
    PRESETS: ClassVar = {
        "50": {"budget": Budget(fraction=0.5), "recent": 0.34, "heavy": 0.24},
        "35": {"budget": Budget(fraction=0.35), "recent": 0.23, "heavy": 0.06},
        "paper": {
            "mode": "eps",
            "recent": 0.17,
            "heavy": 0.12,
            "sinks": 0,
            "longest": 0,
            "skip": "0+0",
            "value": "paper",
        },
    }

    def __post_init__(self) -> None:
        require_known(self, "mode", MODES)
        require_known(self, "value", VALUES)
        require_known(self, "score", SCORES)
        if self.sigma not in SIGMAS and not _positive(self.sigma):
            given = f"kvmerger: sigma={self.sigma} is neither a width nor known"
            raise KvchatError("usage", given, *(f"sigma={s}" for s in SIGMAS), "sigma=5")
        require_share(self, "recent", 0.23)
        require_share(self, "heavy", 0.06)
        if self.recent + self.heavy > 1:
            given = f"kvmerger: recent={self.recent:g} and heavy={self.heavy:g} are more than all"
            raise KvchatError("usage", given, "recent=0.34,heavy=0.24")
        require_least(self, "sinks", 0, 4)
        require_least(self, "longest", 0, 16)
        require_least(self, "window", 1, 64)
        if self.longest == 1:
            raise KvchatError("usage", "kvmerger: longest=1 merges nothing", "longest=16")
        if self.skip != "auto":
            _skipped(self.skip)
        if self.mode == "eps":
            if self.budget is not DEFAULT_BUDGET and self.budget != EVERYTHING:
                raise KvchatError(
                    "usage",
                    f"kvmerger: mode=eps finds its own size; a budget of {self.budget} cannot be "
                    "met",
                    "kvmerger:mode=eps without --budget",
                    f"kvmerger --budget {self.budget}",
                )
            object.__setattr__(self, "budget", EVERYTHING)

    @property
    def needs(self) -> Needs:
        """Column sums, or a window of queries."""
        return Needs(column_mass=True) if self.score == "column" else Needs(queries=self.window)

    @property
    def extra(self) -> int:
        """Bytes beside an entry: its count, and with votes its bias."""
        return 8 if self.value == "votes" else 4

    def entries(self, geometry: Geometry) -> list[int]:
        """Entries of each layer; skipped layers keep all, the others share what is left."""
        total, layers = self.budget.entries(geometry, self.extra), geometry.layers
        first, last = self._skips(total, geometry)
        left = layers * total - (first + last) * geometry.full
        others = layers - first - last
        if others == 0 or left < others * geometry.heads:
            if total == geometry.full:
                return [total] * layers
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
        total = min(self.entries(prefilled.geometry)[prefilled.layer], prefilled.entries)
        if total == prefilled.entries and self.mode == "budget" and prefilled.count is None:
            return keep_all(prefilled)
        mass = self._mass(prefilled)
        protected = self._protected(prefilled, mass, total)
        delta, free = similarity(prefilled.keys), free_links(protected | ~prefilled.exists)
        if self.mode == "eps":
            links = links_above(delta, free, self.eps, self.longest)
        else:
            links = best_links(delta, free, prefilled.entries - total, self.longest)
        slots = merge(prefilled, links, mass, protected, self.sigma, self.value)
        if self.mode == "budget" and len(slots) > total:
            slots = slots.where(_best(slots.mass, slots.guarded, total))
        return slots.segment(heads, prefilled.span, self.value)

    def _mass(self, prefilled: Prefilled) -> Tensor:
        """The attention that each entry received, `[H, T]`."""
        if self.score == "window":
            return group_mass(prefilled, prefilled.shape[1])
        assert prefilled.column_mass is not None, "the reading gives what `needs` names"
        return prefilled.column_mass

    def _protected(self, prefilled: Prefilled, mass: Tensor, total: int) -> Tensor:
        """Sinks, heavy and recent entries `[H, T]`: shares of the entries that a head keeps
        evenly.
        """
        heads, tokens = prefilled.shape
        each = total // heads
        recent, heavy = max(1, int(self.recent * each)), int(self.heavy * each)
        sinks = min(self.sinks, max(each - recent - heavy, 0)) if prefilled.position is None else 0
        protected = torch.zeros(heads, tokens, dtype=torch.bool, device=mass.device)
        protected[:, :sinks] = True
        protected[:, tokens - min(recent, tokens) :] = True
        heaviest = mass.masked_fill(protected | ~prefilled.exists, budgets.ABSENT)
        top = torch.sort(heaviest, dim=1, descending=True, stable=True).indices[:, :heavy]
        return protected.scatter(1, top, True) & prefilled.exists

    def _skips(self, total: int, geometry: Geometry) -> tuple[int, int]:
        """Layers left whole at both ends."""
        if self.mode == "budget" and total == geometry.full:
            return 0, 0
        if self.skip != "auto":
            return _skipped(self.skip)
        # the first two and the last of a deep model, if the others keep half of an even share
        left = geometry.layers * total - 3 * geometry.full
        fits = geometry.layers >= 16 and left >= (geometry.layers - 3) * total / 2
        return (2, 1) if fits else (0, 0)


def _best(mass: Tensor, guarded: Tensor, total: int) -> Tensor:
    """Which `total` slots stay: guarded ones, then the most attended."""
    order = torch.sort(mass.masked_fill(guarded, float("inf")), descending=True, stable=True)
    kept = torch.zeros_like(guarded)
    kept[order.indices[:total]] = True
    return kept


def _skipped(text: str) -> tuple[int, int]:
    parts = text.split("+")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise KvchatError(
            "usage", f"kvmerger: skip={text} is not FIRST+LAST layers", "skip=2+1", "skip=auto"
        )
    return int(parts[0]), int(parts[1])


def _positive(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False
