"""The backend contract: exact attention with its log-sum-exp, and what is asked in shapes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from kvchat.kernels.entries import Entries, Packing

__all__ = ["Backend", "Call", "Entries", "JointBackend", "Packing", "dense", "even"]


class Backend(Protocol):
    """Exact attention with its log-sum-exp; partial outputs are joined by `ops.combine`."""

    @property
    def name(self) -> str:
        """What it is called on the command line."""

    @property
    def cap(self) -> float:
        """What scaled logits are capped at; 0: they are not."""

    def attend(self, q: Tensor, entries: Entries, scale: float) -> tuple[Tensor, Tensor]:
        """Rectangle: `q [T, H*G, D]` sees every entry. Returns `o [T, H*G, D]`, `lse [T, H*G]`."""

    def causal(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Square: `q [T, H*G, D]` over `k, v [H, T, D]`, query t sees entries 0..t."""


class JointBackend(ABC):
    """A backend that may take the whole past of a layer at once.

    A class, not a protocol: layers ask for it at every token.
    """

    cap = 0.0

    @abstractmethod
    def joint(
        self,
        q: Tensor,
        parts: Sequence[Entries],
        scale: float,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor] | None:
        """`q [T, H*G, D]`, the queries of the newest T entries of the last part, over all parts.

        The output is in `dtype` where the backend can choose. None where parts have to be attended
        to one by one.
        """


KINDS = {"entries": "attention", "square": "causal attention", "joint": "a layer's attention"}


@dataclass(frozen=True)
class Call:
    """What is asked of a backend, in shapes: enough for it to say no, and why.

    `kind` is `entries` (a rectangle), `square`, or `joint`. `even` says that all heads of every
    part have equally many entries, equally far apart; `bits` are the fewest of any part.
    """

    kind: str
    device: str
    dtype: torch.dtype
    tokens: int
    heads: int
    group: int
    dim: int
    parts: int = 1
    even: bool = True
    bias: bool = False
    bits: int = 16

    @classmethod
    def of(cls, kind: str, q: Tensor, parts: Sequence[Entries]) -> "Call":
        """The shapes of `q [T, H*G, D]` over `parts`."""
        tokens, query_heads, dim = q.shape
        heads = len(parts[0].spans)
        return cls(
            kind=kind,
            device=q.device.type,
            dtype=q.dtype,
            tokens=tokens,
            heads=heads,
            group=query_heads // heads,
            dim=dim,
            parts=len(parts),
            even=all(even(entries.spans) for entries in parts),
            bias=any(entries.bias is not None for entries in parts),
            bits=min(16 if entries.packing is None else entries.packing.bits for entries in parts),
        )

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        parts = f"{self.parts} entry sets, " if self.parts > 1 else ""
        bits = f", {self.bits}-bit entries" if self.bits < 16 else ""
        return (
            f"{KINDS[self.kind]} on {self.device} of q [{self.tokens}, {self.heads * self.group}, "
            f"{self.dim}] {kind} over {parts}{self.heads} {'even' if self.even else 'ragged'} KV "
            f"heads{', bias' if self.bias else ''}{bits}"
        )


def dense(store: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """What even heads own of a flat store `[R, ...]`, as a view `[H, N, ...]`."""
    (first, length), *others = spans
    step = others[0][0] - first if others else length
    entry, *inner = store.stride()
    shape, stride = (len(spans), length, *store.shape[1:]), (step * entry, entry, *inner)
    return store.as_strided(shape, stride, store.storage_offset() + first * entry)


def even(spans: Sequence[tuple[int, int]]) -> bool:
    """Whether all heads have equally many entries, equally far apart."""
    lengths = {n for _, n in spans}
    steps = {b - a for (a, _), (b, _) in pairwise(spans)}
    return len(lengths) == 1 and len(steps) <= 1 and min(steps | lengths) >= max(lengths)
