"""Linear maps and tables of a decoder, by how their weights are stored. Blocks call them alike, and
ask for `dense` where they need the numbers."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from kvchat.engine.gguf.blocks import GROUPED
from kvchat.engine.gguf.tensors import Packed
from kvchat.engine.weights import lowbit
from kvchat.engine.weights.bits import group_of

# For more tokens than this a product with the weight turned back, slice by slice, is faster.
FEW = 64


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


class Int8Linear(nn.Module):
    """A linear map in 8 bits with a scale per output."""

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.codes, self.scale, self.bias = codes, scale, bias

    @classmethod
    def of(cls, weight: Tensor | Packed, bias: Tensor | None = None) -> "Int8Linear":
        """Quantize `weight [out, in]`."""
        codes, scale = lowbit.quantize_rows(weight)
        return cls(_kept(codes), _kept(scale), bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` to `[T, out]`, the dtype of `x`.

        A few tokens on a CPU go through torch's operator, which takes `x` in bf16. On CUDA that
        walks a row per thread, slower than turning the weight back.
        """
        if len(x) <= FEW and x.device.type == "cpu":
            y = torch._weight_int8pack_mm(x.to(lowbit.WIDE), self.codes, self.scale).to(x.dtype)
        else:
            cuts = lowbit.slices(self.codes.shape, x.device)
            parts = [linear(x, self.codes[a:b].to(x.dtype)) for a, b in cuts]
            y = torch.cat(parts, dim=1).mul_(self.scale.to(x.dtype))
        return y if self.bias is None else y.add_(self.bias)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight `[out, in]` as numbers, a copy."""
        return self.codes.to(dtype).mul_(self.scale[:, None].to(dtype))


class Int4Linear(nn.Module):
    """A linear map in 4 bits with a scale and a zero per group of inputs."""

    def __init__(self, packed: Tensor, scales: Tensor, group: int, bias: Tensor | None = None):
        super().__init__()
        self.packed, self.scales, self.bias = packed, scales, bias
        self.group = group

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

        A few tokens go through torch's operator, which takes `x` in bf16; so do all where the
        packing is not known.
        """
        if len(x) <= FEW or lowbit.unpacking(x.device.type) is None:
            wide = x.to(lowbit.WIDE)
            y = lowbit.operator(wide, self.packed, self.scales, self.group).to(x.dtype)
        else:
            parts = lowbit.numbers(self.packed, self.scales, self.group, x.dtype)
            y = torch.cat([x @ part for part in parts], dim=1)
        return y if self.bias is None else y.add_(self.bias)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight `[out, in]` as numbers, a copy."""
        if lowbit.unpacking(self.packed.device.type) is None:
            inputs, device = len(self.scales) * self.group, self.packed.device
            one = torch.eye(inputs, dtype=lowbit.WIDE, device=device)
            return lowbit.operator(one, self.packed, self.scales, self.group).t().to(dtype)
        parts = lowbit.numbers(self.packed, self.scales, self.group, dtype)
        return torch.cat([part.t() for part in parts])


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
