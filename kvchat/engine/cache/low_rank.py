"""Entries that are kept, and a state of constant size for those that are not (LESS)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu

from kvchat.engine import ops
from kvchat.engine.attention.entries import Backend, Entries
from kvchat.engine.cache.quantized import QuantizedSegment
from kvchat.engine.cache.segment import FlatSegment, Memory

SLICE = 8192  # entries whose features are alive at once
LEAST = 1e-30  # of a mass, whose logarithm is taken
ENTRIES, ASKS = "entries.", "asks."  # how names of tensors begin


class Asks(NamedTuple):
    """What makes features of queries: `inner [H*G, D, E]` and `outer [H*G, E, R]`, fp32.

    The features are to be multiplied by `exp(shift)`, `shift [H*G]`, which can be out of fp32's
    range.
    """

    inner: Tensor
    outer: Tensor
    shift: Tensor

    def __call__(self, q: Tensor) -> Tensor:
        """Features `[T, H*G, R]` of `q [T, H*G, D]`, none of them negative, without the shift."""
        hidden = gelu(q.float().transpose(0, 1) @ self.inner)
        return gelu(hidden @ self.outer).abs().transpose(0, 1)


class Answers(NamedTuple):
    """What makes features of keys: `inner [H, D, E]`, `outer [H, E, R]` and `mix [H, R, R]`,
    fp32."""

    inner: Tensor
    outer: Tensor
    mix: Tensor

    def __call__(self, keys: Tensor) -> Tensor:
        """Features `[H, T, R]` of `keys [H, T, D]`, none of them negative."""
        hidden = gelu(keys.float() @ self.inner)
        return (gelu(hidden @ self.outer) @ self.mix).abs()


class Features(NamedTuple):
    """Maps of one layer: the product of a query's and a key's features stands for the exponential
    of their logit. Both see vectors after RoPE."""

    asks: Asks
    answers: Answers


@dataclass(frozen=True)
class State:
    """What is known of entries that are not kept.

    `total [H, R, D]` is the sum of the products of their features and values, `mass [H, R]` that of
    their features, both fp32.
    """

    total: Tensor
    mass: Tensor
    asks: Asks

    @classmethod
    def of(cls, features: Features, keys: Tensor, values: Tensor, gone: Tensor) -> "State":
        """Of the entries of `keys, values [H, T, D]` where `gone [H, T]` (bool) is true."""
        heads, _, dim = keys.shape
        rank = features.answers.mix.shape[2]
        total, mass = keys.new_zeros(heads, rank, dim).float(), keys.new_zeros(heads, rank).float()
        for some, own, away in zip(
            keys.split(SLICE, 1), values.split(SLICE, 1), gone.split(SLICE, 1), strict=True
        ):
            psi = features.answers(some) * away[..., None]
            total += psi.transpose(1, 2) @ own.float()
            mass += psi.sum(dim=1)
        return cls(total, mass, features.asks)

    def attend(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """`q [T, H*G, D]` over all that is gone. Returns `o [T, H*G, D]`, `lse [T, H*G]`, fp32.

        How logits are scaled, and that they may be capped, is in the maps.
        """
        heads, rank, _ = self.total.shape
        phi = self.asks(q).unflatten(1, (heads, -1))  # [T, H, G, R]
        weights = phi.permute(1, 0, 2, 3).reshape(heads, -1, rank)  # [H, T*G, R]
        mass = (weights @ self.mass[..., None]).clamp_min(LEAST)
        o = (weights @ self.total) / mass
        shape = heads, len(q), -1
        o = o.view(*shape, o.shape[-1]).transpose(0, 1).flatten(1, 2)
        lse = mass.log().view(shape).transpose(0, 1).flatten(1)
        return o, lse + self.asks.shift

    def memory(self) -> Memory:
        """Exact bytes of the sums. The maps are the model's."""
        return Memory.of((self.total, self.mass))


@dataclass(frozen=True)
class LowRankSegment:
    """Entries that are kept, flat or in few bits, beside the state of the others."""

    entries: FlatSegment | QuantizedSegment
    state: State
    kind: ClassVar[str] = "low-rank"
    parts: ClassVar[None] = None  # of the state there is no entry

    @classmethod
    def load(cls, tensors: dict[str, Tensor], span: tuple[int, int]) -> "LowRankSegment":
        """The segment whose `tensors()` these are."""

        def named(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        own = named(ENTRIES)
        stored = QuantizedSegment if "k_scale" in own else FlatSegment
        state = State(tensors["total"], tensors["mass"], Asks(**named(ASKS)))
        return cls(stored.load(own, span), state)

    @property
    def span(self) -> tuple[int, int]:
        return self.entries.span

    @property
    def lengths(self) -> tuple[int, ...]:
        return self.entries.lengths

    def attend(self, q: Tensor, scale: float, backend: Backend) -> tuple[Tensor, Tensor]:
        """`q [T, H*G, D]` over entries and state. Returns `o [T, H*G, D]`, `lse [T, H*G]`."""
        return ops.combine([self.entries.attend(q, scale, backend), self.state.attend(q)])

    def located(self) -> Iterator[tuple[Entries, Tensor]]:
        return self.entries.located()

    def memory(self) -> Memory:
        """Exact bytes of entries and state; the maps are the model's."""
        return self.entries.memory() + self.state.memory()

    def tensors(self) -> dict[str, Tensor]:
        """Entries, state and the maps of queries: a state means nothing to others."""
        return {
            **{ENTRIES + name: tensor for name, tensor in self.entries.tensors().items()},
            "total": self.state.total,
            "mass": self.state.mass,
            **{ASKS + name: tensor for name, tensor in self.state.asks._asdict().items()},
        }


def joined(
    before: FlatSegment | LowRankSegment, later: FlatSegment | LowRankSegment
) -> FlatSegment | LowRankSegment:
    """One segment of two that stand one behind the other, whose entries are all plain."""
    parts = before, later
    flat = [each.entries if isinstance(each, LowRankSegment) else each for each in parts]
    states = [each.state for each in parts if isinstance(each, LowRankSegment)]
    first, second = flat
    assert isinstance(first, FlatSegment) and isinstance(second, FlatSegment)
    entries = first.joined(second)
    if not states:
        return entries
    total = torch.stack([state.total for state in states]).sum(dim=0)
    mass = torch.stack([state.mass for state in states]).sum(dim=0)
    return LowRankSegment(entries, State(total, mass, states[0].asks))
