"""Linear maps and tables of a decoder, by how their weights are stored. Blocks call them alike, and
ask for `dense` where they need the numbers."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from kvchat.engine import ops
from kvchat.engine.gguf.blocks import GROUPED
from kvchat.engine.gguf.tensors import Packed
from kvchat.engine.weights import host, lowbit
from kvchat.engine.weights.bits import group_of

# For more tokens than this a product with the weight turned back, slice by slice, is faster.
FEW = 64
SINGLE = 20  # the same for 8 bits on a CPU, whose operator takes them one by one


def _kept(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


class Linear(nn.Linear):
    """A linear map of plain numbers that is never initialised: they come from a checkpoint.

    (Initialising on the meta device would import 70 MB of torch's symbolic machinery.)
    """

    def reset_parameters(self) -> None:
        """Nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` to `[T, out]`; one token in bf16 on a CPU as two, which torch does faster."""
        if len(x) == 1 and x.dtype == torch.bfloat16 and x.device.type == "cpu":
            return super().forward(x.expand(2, -1))[:1]
        return super().forward(x)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight `[out, in]` as numbers; here itself."""
        return self.weight


def on_host(x: Tensor) -> bool:
    """Whether torch's operators for few bits are asked: those of a CPU are good."""
    return x.device.type == "cpu"


ROOM = 2**30  # bytes that stay free on a card where numbers are held


def spare(device: torch.device) -> int:
    """Bytes that a card has for what need not be."""
    if device.type != "cuda":
        return 0
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused


@contextmanager
def held(modules: Sequence[nn.Module], itemsize: int) -> Iterator[None]:
    """Let those in few bits hold their numbers, of `itemsize` bytes, where a card has room for them
    four times: no plan counts them."""
    few = [module for module in modules if isinstance(module, FewBits)]
    needed = sum(module.numel for module in few) * itemsize
    first = next((p for module in few for p in module.parameters()), None)
    holds = first is not None and spare(first.device) >= 4 * needed + ROOM
    try:
        for module in few if holds else ():
            module.hold(True)
        yield
    finally:
        for module in few:
            module.hold(False)


class FewBits(nn.Module):
    """A linear map in few bits. On a card the numbers of its weight are kept while it `holds`
    them, so that the chunks of a document share them."""

    numel: int  # of the weight

    def __init__(self, bias: Tensor | None):
        super().__init__()
        self.bias = bias
        self.holds = False
        self._held: Tensor | None = None

    @abstractmethod
    def _numbers(self, dtype: torch.dtype) -> Tensor:
        """The weight `[out, in]` as numbers, a copy."""

    @abstractmethod
    def rows(self, a: int, b: int) -> "FewBits":
        """The map to outputs `a` to `b`, a view without a bias."""

    def many(self, x: Tensor) -> Tensor:
        """`[T, in]` to `[T, out]` of many tokens on a card: by numbers that are held, or by a slice
        of them after the other."""
        if self.holds:
            return linear(x, self.dense(x.dtype), self.bias)
        cuts = lowbit.slices((self.numel // x.shape[1], x.shape[1]), x.device)
        y = torch.cat([linear(x, self.rows(a, b).dense(x.dtype)) for a, b in cuts], dim=1)
        return y if self.bias is None else y.add_(self.bias)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight `[out, in]` as numbers, a copy or what is held."""
        if self._held is not None and self._held.dtype == dtype:
            return self._held
        weight = self._numbers(dtype)
        if self.holds:
            self._held = weight
        return weight

    def hold(self, holds: bool) -> None:
        """Keep numbers from now on, or let them go."""
        self.holds, self._held = holds, None


class Int8Linear(FewBits):
    """A linear map in 8 bits with a scale per output."""

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor | None = None):
        super().__init__(bias)
        self.codes, self.scale = codes, scale
        self.numel = codes.numel()

    def rows(self, a: int, b: int) -> "Int8Linear":
        return Int8Linear(self.codes[a:b], self.scale[a:b])

    @classmethod
    def of(cls, weight: Tensor | Packed, bias: Tensor | None = None) -> "Int8Linear":
        """Quantize `weight [out, in]`."""
        codes, scale = lowbit.quantize_rows(weight)
        return cls(_kept(codes), _kept(scale), bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` to `[T, out]`, the dtype of `x`.

        A few tokens go through an operator that reads the codes once; that of a CPU takes `x` in
        bf16.
        """
        if not on_host(x):
            if len(x) <= FEW:
                return ops.int8_product(x, self.codes, self.scale, self.bias)
            return self.many(x)
        if len(x) <= SINGLE:
            y = torch._weight_int8pack_mm(x.to(lowbit.WIDE), self.codes, self.scale).to(x.dtype)
        else:
            cuts = lowbit.slices(self.codes.shape, x.device)
            parts = [linear(x, self.codes[a:b].to(x.dtype)) for a, b in cuts]
            y = torch.cat(parts, dim=1).mul_(self.scale.to(x.dtype))
        return y if self.bias is None else y.add_(self.bias)

    def _numbers(self, dtype: torch.dtype) -> Tensor:
        return self.codes.to(dtype).mul_(self.scale[:, None].to(dtype))


class Int4Linear(FewBits):
    """A linear map in 4 bits with a scale and a zero per group of inputs."""

    def __init__(self, packed: Tensor, scales: Tensor, group: int, bias: Tensor | None = None):
        super().__init__(bias)
        self.packed, self.scales = packed, scales
        self.group = group
        groups, outputs, _ = scales.shape
        self.numel = groups * group * outputs

    def rows(self, a: int, b: int) -> "Int4Linear":
        return Int4Linear(self.packed[a:b], self.scales[:, a:b], self.group)

    @classmethod
    def of(cls, weight: Tensor | Packed, bias: Tensor | None = None) -> "Int4Linear":
        """Quantize `weight [out, in]`; one that comes in such groups is taken as it is."""
        if isinstance(weight, Packed) and weight.block.name in GROUPED:
            packed, scales = lowbit.pack_groups(weight)
            return cls(_kept(packed), _kept(scales), lowbit.BLOCK, bias)
        group = group_of(weight.shape[1])
        packed, scales = lowbit.quantize_groups(weight, group)
        return cls(_kept(packed), _kept(scales), group, bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` to `[T, out]`, the dtype of `x`.

        A few tokens go through an operator that reads the codes once; that of a CPU takes `x` in
        bf16, and all tokens where its packing is not known.
        """
        if not on_host(x):
            if len(x) <= FEW:
                return ops.int4_product(x, self.packed, self.scales, self.bias)
            return self.many(x)
        if (compiled := host.product(x, self.packed, self.scales, self.group)) is not None:
            y = compiled.to(x.dtype)
        elif len(x) <= FEW or lowbit.unpacking() is None:
            wide = x.to(lowbit.WIDE)
            y = lowbit.operator(wide, self.packed, self.scales, self.group).to(x.dtype)
        else:
            parts = lowbit.numbers(self.packed, self.scales, self.group, x.dtype)
            y = torch.cat([x @ part for part in parts], dim=1)
        return y if self.bias is None else y.add_(self.bias)

    def _numbers(self, dtype: torch.dtype) -> Tensor:
        if not on_host(self.packed):
            return ops.int4_numbers(self.packed, self.scales, dtype)
        if lowbit.unpacking() is None:
            one = torch.eye(len(self.scales) * self.group, dtype=lowbit.WIDE)
            return lowbit.operator(one, self.packed, self.scales, self.group).t().to(dtype)
        parts = lowbit.numbers(self.packed, self.scales, self.group, dtype)
        return torch.cat([part.t() for part in parts])


PARTS: dict[type[nn.Module], dict[str, int]] = {
    Linear: {"weight": 0},
    Int8Linear: {"codes": 0, "scale": 0},
    Int4Linear: {"packed": 0, "scales": 1},
}
"""The tensors of a linear map, and which of their dims are outputs."""


def joined(modules: Sequence[nn.Module]) -> nn.Module | None:
    """One linear map for several of one input, whose tensors become views of it, so that nothing
    is stored twice. None where they are stored in different ways."""
    kind, biases = type(modules[0]), [getattr(module, "bias", None) for module in modules]
    alike = {(type(module), getattr(module, "group", 0)) for module in modules}
    if len(alike) > 1 or len({bias is None for bias in biases}) > 1:
        return None
    found: dict[str, nn.Parameter] = {}
    for name, dim in (PARTS[kind] | ({} if biases[0] is None else {"bias": 0})).items():
        each = [getattr(module, name) for module in modules]
        found[name] = _kept(torch.cat([part.detach() for part in each], dim))
        views = found[name].split([part.shape[dim] for part in each], dim)
        del each
        for module, view in zip(modules, views, strict=True):
            setattr(module, name, _kept(view))
    if kind is Int8Linear:
        return Int8Linear(found["codes"], found["scale"], found.get("bias"))
    if kind is Int4Linear:
        group = int(getattr(modules[0], "group"))  # noqa: B009
        return Int4Linear(found["packed"], found["scales"], group, found.get("bias"))
    outputs, inputs = found["weight"].shape
    with torch.device("meta"):
        whole = Linear(inputs, outputs, bias="bias" in found)
    for name, tensor in found.items():
        setattr(whole, name, tensor)
    return whole


class Embedding(nn.Embedding):
    """A table of plain numbers that is never initialised: they come from a checkpoint."""

    def reset_parameters(self) -> None:
        """Nothing."""

    def tied(self, head: nn.Module) -> nn.Module:
        head.weight = self.weight
        return head


class Int8Embedding(nn.Module):
    """A table in 8 bits with a scale per row."""

    def __init__(self, weight: Tensor | Packed, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        codes, scale = lowbit.quantize_rows(weight)
        self.codes, self.scale = _kept(codes), _kept(scale)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows `[T, hidden]` of `ids [T]`, in the model's dtype."""
        return self.codes[ids].to(self.dtype).mul_(self.scale[ids][:, None].to(self.dtype))

    def tied(self, head: nn.Module) -> nn.Module:
        return Int8Linear(self.codes, self.scale)


TABLES = "int8"  # embedding and output projection, whatever the rest is stored in
STORED: dict[str, type[Int8Linear] | type[Int4Linear]] = {"int8": Int8Linear, "int4": Int4Linear}


def in_few_bits(
    module: nn.Module, weight: Tensor | Packed, weights: str, dtype: torch.dtype
) -> nn.Module:
    """What stands for `module`, a map or a table, when its weight is stored as `weights`."""
    if isinstance(module, Embedding):
        return Int8Embedding(weight, dtype)
    assert isinstance(module, Linear), module
    return STORED[weights].of(weight, module.bias)
