"""A flat segment in few bits: keys per channel, values per token (KIVI, arXiv 2402.02750)."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from math import gcd
from typing import ClassVar

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.attention.entries import Backend, Entries, Packing
from kvchat.engine.cache import GROUP
from kvchat.engine.cache.segment import FlatSegment, Memory

META = torch.float16  # of scales and zeros
SLICE = 4096  # entries that attention turns back into numbers at a time


@dataclass(frozen=True)
class QuantizedSegment:
    """The entries of a flat segment in 8, 4 or 2 bits, and a few of each head as they were.

    Of a head's entries the oldest are packed, a multiple of 32: `k, v [R, D * bits / 8]` uint8,
    head after head, `cu [H+1]`. Keys have a scale and a zero for every 32 entries of a channel,
    `k_scale, k_zero [R/32, D]`, values for every group of channels, `v_scale, v_zero [R, D/g]`, all
    16-bit floats. The remaining entries of each head are in `rest`. `position`, `bias` and `count
    [R]` are those of a flat segment.
    """

    k: Tensor
    k_scale: Tensor
    k_zero: Tensor
    v: Tensor
    v_scale: Tensor
    v_zero: Tensor
    cu: Tensor
    position: Tensor
    rest: FlatSegment
    ends: tuple[int, ...]  # cu on the host
    bias: Tensor | None = None
    count: Tensor | None = None
    kind: ClassVar[str] = "quantized"

    @classmethod
    def of(
        cls, flat: FlatSegment, bits: int, residual: int = 0, whole: Tensor | None = None
    ) -> "QuantizedSegment":
        """Quantize a flat segment, head by head, in the order in which its entries are stored.

        At least the `residual` last entries of each head stay as they are, and those that are
        `whole [R]` (bool).
        """
        dim, device = flat.k.shape[1], flat.k.device
        packed = torch.zeros(len(flat.k), dtype=torch.bool, device=device)
        for a, b in pairwise(flat.ends):
            if whole is None:
                packed[a : a + max(0, b - a - residual) // GROUP * GROUP] = True
            else:
                own = (~whole[a:b]).nonzero()[:, 0] + a
                packed[own[: max(0, len(own) - residual) // GROUP * GROUP]] = True
        body = flat.where(packed)
        # keys: [R/32, 32, D] to groups of 32 entries of one channel; values: groups of channels
        keys = body.k.view(len(body.k) // GROUP, GROUP, dim).transpose(1, 2)
        k_codes, k_scale, k_zero = ops.quantize(keys, bits, META)
        group = gcd(dim, GROUP)
        values = body.v.view(len(body.v), dim // group, group)
        v_codes, v_scale, v_zero = ops.quantize(values, bits, META)
        return cls(
            k=ops.pack(k_codes.transpose(1, 2).flatten(0, 1), bits),
            k_scale=k_scale,
            k_zero=k_zero,
            v=ops.pack(v_codes.flatten(1), bits),
            v_scale=v_scale,
            v_zero=v_zero,
            cu=body.cu,
            position=body.position,
            rest=flat.where(~packed),
            ends=body.ends,
            bias=None if body.bias is None or not bool(body.bias.any()) else body.bias,
            count=body.count,
        )

    @classmethod
    def load(cls, tensors: dict[str, Tensor], span: tuple[int, int]) -> "QuantizedSegment":
        """The segment whose `tensors()` these are."""
        rest = {n.removeprefix("rest."): t for n, t in tensors.items() if n.startswith("rest.")}
        own = {n: t for n, t in tensors.items() if not n.startswith("rest.")}
        ends = tuple(own["cu"].tolist())
        return cls(**own, rest=FlatSegment.load(rest, span), ends=ends)

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return 8 * self.k.shape[1] // self.k_scale.shape[1]

    @property
    def span(self) -> tuple[int, int]:
        return self.rest.span

    @property
    def lengths(self) -> tuple[int, ...]:
        body = (b - a for a, b in pairwise(self.ends))
        return tuple(n + more for n, more in zip(body, self.rest.lengths, strict=True))

    @cached_property
    def parts(self) -> tuple[Entries, ...]:
        """All entries, packed and whole, for backends that take a whole layer."""
        packed = Entries(
            k=self.k,
            v=self.v,
            start=self.cu[:-1],
            length=self.cu.diff(),
            spans=tuple((a, b - a) for a, b in pairwise(self.ends)),
            bias=self.bias,
            packing=Packing(self.bits, self.k_scale, self.k_zero, self.v_scale, self.v_zero),
        )
        return packed, self.rest.entries

    def attend(self, q: Tensor, scale: float, backend: Backend) -> tuple[Tensor, Tensor]:
        """`q [T, H*G, D]` over all entries, a slice at a time. Returns `o [T, H*G, D]`, `lse`."""
        parts = [backend.attend(q, entries, scale) for entries in self._slices()]
        return ops.combine([*parts, self.rest.attend(q, scale, backend)])

    def located(self) -> Iterator[tuple[Entries, Tensor]]:
        for entries, (*_, a, b) in zip(self._slices(), self._cuts, strict=True):
            yield entries, self.position[a:b]
        yield from self.rest.located()

    def memory(self) -> Memory:
        """Exact bytes: codes, scales, zeros, the rest, positions, entry ranges."""
        return Memory.of(self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        here = {name: value for name, value in own.items() if isinstance(value, Tensor)}
        return here | {f"rest.{name}": t for name, t in self.rest.tensors().items()}

    def _slices(self) -> Iterator[Entries]:
        """The packed entries as numbers, `SLICE` at a time; a head may have none there."""
        for start, length, spans, a, b in self._cuts:
            yield Entries(
                k=self._keys(a, b),
                v=self._values(a, b),
                start=start,
                length=length,
                spans=spans,
                bias=None if self.bias is None else self.bias[a:b],
            )

    @cached_property
    def _cuts(self) -> list[tuple[Tensor, Tensor, tuple[tuple[int, int], ...], int, int]]:
        """Of each slice: starts and lengths of its heads, on the device and here; its entries."""
        cuts = []
        for a in range(0, self.ends[-1], SLICE):
            b = min(a + SLICE, self.ends[-1])
            clipped = [min(max(end, a), b) - a for end in self.ends]
            spans = tuple((lo, hi - lo) for lo, hi in pairwise(clipped))
            table = torch.tensor(spans, dtype=torch.int32, device=self.k.device)
            cuts.append((table[:, 0].contiguous(), table[:, 1].contiguous(), spans, a, b))
        return cuts

    def _keys(self, a: int, b: int) -> Tensor:
        codes = ops.unpack(self.k[a:b], self.bits).view(-1, GROUP, self.k_scale.shape[1])
        groups = slice(a // GROUP, b // GROUP)  # one scale for 32 entries of a channel
        entries = torch.addcmul(
            self.k_zero[groups, None].float(), codes.float(), self.k_scale[groups, None].float()
        )
        return entries.flatten(0, 1).to(self.rest.k.dtype)

    def _values(self, a: int, b: int) -> Tensor:
        codes, groups = ops.unpack(self.v[a:b], self.bits), self.v_scale.shape[1]
        codes = codes.view(b - a, groups, codes.shape[1] // groups)
        entries = ops.dequantize(codes, self.v_scale[a:b], self.v_zero[a:b], self.rest.v.dtype)
        return entries.flatten(1)
