"""Keeps all entries of a document while it is read, layer by layer, and what was observed of
them.
"""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from kvchat.engine.cache.archive import Archive
from kvchat.engine.methods.base import Evidence, Retold
from kvchat.engine.methods.needs import Needs, Telling

OBSERVED = Needs(queries=64, future=1)
"""What a reading observes for methods that may choose later, beside what its own method needs.

Column sums and replays are too dear for a maybe: they multiply the time of reading.
"""


def recorded(observed: dict[str, Tensor], retold: Retold) -> dict[str, Tensor]:
    """What a reading has observed in a layer, all of it by name; `shown` is the inverse."""
    found = observed | {_name(telling): table for telling, table in retold.scores.items()}
    if (evidence := retold.evidence) is not None:
        found |= {"evidence q": evidence.q, "evidence o": evidence.o}
        found["evidence lse"] = evidence.lse.double()
    return found | {"structural": retold.structural.to(torch.uint8)}


def shown(record: Mapping[str, Tensor], device: torch.device) -> Retold:
    """What replays have shown, as far as it was recorded."""
    scores = {}
    for name, table in record.items():
        if name.startswith("told "):
            _, what, chunk, weigh = name.split()
            scores[Telling(what, int(chunk), weigh)] = table.to(device)
    evidence = None
    if "evidence q" in record:
        q, o, lse = (record[f"evidence {name}"].to(device) for name in ("q", "o", "lse"))
        evidence = Evidence(q, o, lse.float())
    return Retold(scores, evidence, record["structural"].to(device, torch.bool))


def _name(telling: Telling) -> str:
    return "told {} {} {}".format(*telling)


def holds(record: Mapping[str, Tensor], needs: Needs, tokens: int) -> bool:
    """Whether a record of a document of `tokens` tokens has all that `needs` name."""
    return (
        (not needs.queries or len(record["queries"]) >= min(needs.queries, tokens))
        and (not needs.column_mass or "mass" in record)
        and (not needs.future or "sum" in record)
        and (not needs.evidence or "evidence q" in record)
        and all(_name(telling) in record for telling in needs.tellings)
    )


class Archiving(Protocol):
    """A context around a reading that gets every layer's entries, and what `needs` names."""

    needs: Needs

    def __enter__(self) -> "Archiving": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def keep(self, number: int, keys: Tensor, values: Tensor, observed: dict[str, Tensor]) -> None:
        """Take in layer `number`: `keys, values [H, T, D]`, which the caller goes on to free."""
        ...

    def archives(self) -> Sequence[Archive]:
        """One per layer, once the reading has ended; none if they could not be kept."""
        ...


class InMemory:
    """Archives in host memory, pinned beside a CUDA device."""

    def __init__(self, needs: Needs = OBSERVED) -> None:
        self.needs = needs
        self._kept: list[Archive] = []

    def __enter__(self) -> "InMemory":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def keep(self, number: int, keys: Tensor, values: Tensor, observed: dict[str, Tensor]) -> None:
        """Copy a layer's entries into stores of their own."""
        seen = {name: tensor.cpu().clone() for name, tensor in observed.items()}
        self._kept.append(Archive(_host(keys), _host(values), seen))

    def archives(self) -> Sequence[Archive]:
        """One per layer."""
        return self._kept


def _host(entries: Tensor) -> Tensor:
    """A contiguous copy in host memory, pinned if it comes from a GPU and that is granted."""
    if not entries.is_cuda:
        return entries.clone(memory_format=torch.contiguous_format)
    try:
        store = torch.empty(entries.shape, dtype=entries.dtype, pin_memory=True)
    except RuntimeError:  # the system does not lock so much memory
        store = torch.empty(entries.shape, dtype=entries.dtype)
    return store.copy_(entries)
