"""Keeps all entries of a document during the prefill, and what was observed of them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from kvchat.engine.cache.archive import Archive
from kvchat.engine.cache.homes import locked
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods.needs import GATE, Needs, ReplayScore

OBSERVED = Needs(queries=64, future=1)
"""What a prefill observes for methods that may choose later, beside what its own method needs.

Column sums and replays are too dear for a maybe: they multiply the time of the prefill.
"""


GATED = OBSERVED | Needs(replay_scores=frozenset({GATE}))
"""Where the model has a gate: what it tells costs next to nothing."""


SEEN = Needs(queries=64)
"""What costs nothing to observe: for a cache that keeps all entries, and other methods later."""


def recorded(observed: dict[str, Tensor], told: Mapping[ReplayScore, Tensor]) -> dict[str, Tensor]:
    """What a prefill has observed in a layer, all of it by name; `shown` is the inverse."""
    return observed | {_name(score): table for score, table in told.items()}


def shown(record: Mapping[str, Tensor], device: torch.device) -> dict[ReplayScore, Tensor]:
    """The scores by replays, as far as they were recorded."""
    told = {}
    for name, table in record.items():
        if name.startswith("told "):
            _, what, chunk, weigh = name.split()
            told[ReplayScore(what, int(chunk), weigh)] = table.to(device)
    return told


def _name(score: ReplayScore) -> str:
    return "told {} {} {}".format(*score)


def holds(record: Mapping[str, Tensor], needs: Needs, tokens: int) -> bool:
    """Whether a record of a document of `tokens` tokens has all that `needs` name."""
    return (
        (not needs.queries or len(record["queries"]) >= min(needs.queries, tokens))
        and (not needs.column_mass or "mass" in record)
        and (not needs.future or "sum" in record)
        and all(_name(score) in record for score in needs.replay_scores)
    )


class Archiving(ABC):
    """A context around a prefill that gets every layer's entries, and what `needs` names."""

    needs: Needs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    @abstractmethod
    def keep(self, number: int, keys: Tensor, values: Tensor, observed: dict[str, Tensor]) -> None:
        """Take in layer `number`: `keys, values [H, T, D]`, which the caller goes on to free."""

    @abstractmethod
    def archives(self) -> Sequence[Archive]:
        """One per layer, once the prefill has ended; none if they could not be kept."""


class InMemory(Archiving):
    """Archives in host memory, locked beside a CUDA device."""

    def __init__(self, needs: Needs = OBSERVED) -> None:
        self.needs = needs
        self._kept: list[Archive] = []

    def keep(self, number: int, keys: Tensor, values: Tensor, observed: dict[str, Tensor]) -> None:
        seen = {name: tensor.cpu().clone() for name, tensor in observed.items()}
        self._kept.append(Archive(_host(keys), _host(values), seen))

    def archives(self) -> Sequence[Archive]:
        return self._kept


class Notes(Archiving):
    """What was observed while every entry was kept, without the entries: a cache has them."""

    def __init__(self, gated: bool) -> None:
        self.needs = SEEN | Needs(replay_scores=frozenset({GATE})) if gated else SEEN
        self._seen: list[dict[str, Tensor]] = []

    def keep(self, number: int, keys: Tensor, values: Tensor, observed: dict[str, Tensor]) -> None:
        self._seen.append({name: each.cpu().clone() for name, each in observed.items()})

    def archives(self) -> Sequence[Archive]:
        """None: see `add_to`."""
        return ()

    def add_to(self, cache: KVCache) -> None:
        """Let other methods choose from the segments of a cache, which keep all entries."""
        for layer, seen in zip(cache.layers, self._seen, strict=True):
            (segment,) = layer.segments
            if isinstance(segment, FlatSegment):  # not in few bits
                shape = len(segment.lengths), -1, segment.k.shape[1]
                entries = segment.k.view(shape), segment.v.view(shape)
                layer.archive = Archive(*entries, seen, shared=True)


def _host(entries: Tensor) -> Tensor:
    """A contiguous copy in host memory, which a GPU that it comes from can read."""
    if not entries.is_cuda:
        return entries.clone(memory_format=torch.contiguous_format)
    return locked(entries.shape, entries.dtype).copy_(entries)
