"""`--auto-loss`: the smallest budget with little top-1 disagreement with the full cache."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kvchat.engine.budget import Budget
from kvchat.engine.cache.layer import KVCache
from kvchat.engine.events import Progress, Smaller
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.build import with_budget
from kvchat.engine.prefill.prefill import Compression
from kvchat.engine.prefill.replay_texts import Passage, held_out, replays_of
from kvchat.engine.session import Session
from kvchat.engine.sizes import LADDER


@dataclass(frozen=True)
class Kept:
    """What was chosen: a budget, its loss, and the loss that is `allowed`.

    A loss is the share of the tokens of held-out passages after which another token is the
    likeliest than with the full cache, None where there are no passages. `tried` has the loss of
    every budget that was tried.
    """

    method: Method
    loss: float | None
    allowed: float
    tried: dict[str, float]

    @property
    def holds(self) -> bool:
        """Whether the loss is within what is allowed; if not, the largest budget was taken."""
        return self.loss is not None and self.loss <= self.allowed

    @property
    def figures(self) -> dict[str, Any]:
        """Both losses, and those of all budgets that were tried."""
        return {"allowed": self.allowed, "loss": self.loss, "tried": self.tried}


def open_within(
    session: Session,
    ids: Sequence[int],
    method: Method,
    allowed: float,
    folds: Method | None = None,
) -> Generator[Progress | Smaller, None, Kept]:
    """Prefill `ids` into the smallest cache with a loss of at most `allowed` (0.02 for 2 %).

    One prefill makes a cache of every budget of `LADDER`; passages that no method has seen walk
    beside it, so what the full cache says is known. All but one of the caches are freed.
    """
    passages = held_out(session.dialogue, ids)
    budgets = [Budget(fraction=share) for share in sorted(LADDER)]
    methods = [with_budget(method, budget) for budget in budgets]
    replays = replays_of(session.dialogue, ids, method.needs.kinds)
    probes = [passage.ids for passage in passages]
    compressions = [Compression(m) for m in methods]
    found = yield from session.engine.prefill(ids, compressions, probes, replays)
    exact = [session.engine.likeliest(hidden) for hidden in found.asides]
    chosen, cache, loss = methods[-1], found.caches[-1], None
    tried: dict[str, float] = {}
    for method, compressed in zip(methods, found.caches, strict=True) if passages else ():
        chosen, cache = method, compressed
        loss = yield from _loss(session, cache, passages, exact)
        tried[str(chosen.budget)] = loss
        if loss <= allowed:
            break
    session.adopt(cache, ids, folds or chosen)
    session.select_seconds, session.chooser = found.select_seconds, chosen
    return Kept(chosen, loss, allowed, tried)


def _loss(
    session: Session, cache: KVCache, passages: Sequence[Passage], exact: Sequence[Tensor]
) -> Generator[Progress, None, float]:
    """The share of all passages' told tokens that a cache would change."""
    layers, done = session.engine.config.num_layers, cache.position
    size = cache.memory().total
    changed = tokens = 0
    for passage, want in zip(passages, exact, strict=True):
        written = len(passage.ids) - passage.asked
        got = session.engine.score(cache, passage.ids, written).argmax(dim=-1)
        told = slice(passage.asked - 1, -1)  # each token is said after the one before it
        changed += int((got[told] != want[told]).sum())
        tokens += written
        yield Progress(layers - 1, layers, done, done, size)  # a moment to stop in
    return changed / tokens
