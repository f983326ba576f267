"""Linear maps and tables of a decoder, by how their weights are stored. A block knows none of this:
it calls them, and asks for `dense` where it needs the numbers."""

import torch
from torch import Tensor, nn

from kvchat.engine.weights import lowbit
from kvchat.engine.weights.bits import group_of


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
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> "Int8Linear":
        """Quantise `weight [out, in]`."""
        codes, scale = lowbit.quantize_rows(weight)
        return cls(_kept(codes), _kept(scale), bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` to `[T, out]`."""
        y = lowbit.rows_product(x, self.codes, self.scale)
        return y if self.bias is None else y.add_(self.bias)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight `[out, in]` as numbers, a copy."""
        return lowbit.entries_dense(self.codes, self.scale, dtype)


class Int4Linear(nn.Module):
    """A linear map in 4 bits with a scale and a zero per group of inputs."""

    def __init__(self, packed: Tensor, scales: Tensor, group: int, bias: Tensor | None = None):
        super().__init__()
        self.packed, self.scales, self.bias = packed, scales, bias
        self.group = group

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> "Int4Linear":
        """Quantise `weight [out, in]`."""
        group = group_of(weight.shape[1])
        packed, scales = lowbit.quantize_groups(weight, group)
        return cls(_kept(packed), _kept(scales), group, bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` to `[T, out]`."""
        y = lowbit.groups_product(x, self.packed, self.scales, self.group)
        return y if self.bias is None else y.add_(self.bias)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight `[out, in]` as numbers, a copy."""
        return lowbit.groups_dense(self.packed, self.scales, self.group, dtype)


class Embedding(nn.Embedding):
    """A table of plain numbers that is never initialised: they come from a checkpoint."""

    def reset_parameters(self) -> None:
        """Nothing."""

    def tied(self, head: nn.Module) -> nn.Module:
        """The output projection that shares this table."""
        head.weight = self.weight
        return head


class Int8Embedding(nn.Module):
    """A table in 8 bits with a scale per row."""

    def __init__(self, weight: Tensor, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        codes, scale = lowbit.quantize_rows(weight)
        self.codes, self.scale = _kept(codes), _kept(scale)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows `[T, hidden]` of `ids [T]`, in the model's dtype."""
        return lowbit.entries_dense(self.codes[ids], self.scale[ids], self.dtype)

    def tied(self, head: nn.Module) -> nn.Module:
        """The output projection that shares this table."""
        return Int8Linear(self.codes, self.scale)


TABLES = "int8"  # embedding and output projection, whatever the rest is stored in
STORED: dict[str, type[Int8Linear] | type[Int4Linear]] = {"int8": Int8Linear, "int4": Int4Linear}


def in_few_bits(module: nn.Module, weight: Tensor, weights: str, dtype: torch.dtype) -> nn.Module:
    """What stands for `module`, a map or a table, when its weight is stored as `weights`."""
    if isinstance(module, Embedding):
        return Int8Embedding(weight, dtype)
    assert isinstance(module, Linear), module
    return STORED[weights].of(weight, module.bias)
