"""Linear maps of a few tokens as compiled products, by how their weights are stored."""

from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np
import torch
from torch import nn

from kvchat.engine.peers import Peers
from kvchat.engine.weights import host, lowbit
from kvchat.engine.weights.host import WORTH
from kvchat.engine.weights.linear import Int4Linear, Int8Linear, Linear
from kvchat.kernels.cpu import four_bits, products, quads
from kvchat.kernels.cpu.numbers import view

Rounded = Callable[[int, int], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Room for so many vectors of so many values in 8 bits; see `four_bits.rounded`."""

INTEGERS = quads if quads.able() else four_bits  # how 4 bits are multiplied here

Product = Callable[[np.ndarray, np.ndarray], None]
"""Linear maps of the same inputs: `x [B, in]` to `y [B, out]`, both f32 and contiguous, without
biases; several maps put theirs one after the other."""


def product(modules: Sequence[nn.Module], rounded: Rounded, threads: int) -> Product:
    """The product of maps of the same inputs, by how their weights are stored."""
    if all(isinstance(each, Linear) for each in modules):
        weights = [(view(each.weight),) for each in modules]  # type: ignore[arg-type]
        kernels = products.gemm, products.gemm_parallel, products.gemm_joined
        return Shared(weights, *kernels, threads)
    if all(isinstance(each, Int8Linear) for each in modules):
        codes = [(view(each.codes), view(each.scale)) for each in modules]  # type: ignore[arg-type]
        rows = products.gemm_rows, products.gemm_rows_parallel, products.gemm_rows_joined
        return Shared(codes, *rows, threads)
    known = four_bits.able() and lowbit.halves_of(four_bits.ROWS)
    if known and all(isinstance(each, Int4Linear) for each in modules):
        return Four(modules, rounded, threads)  # type: ignore[arg-type]
    return Operators(modules)


class Shared:
    """By compiled functions that read the weights as they are."""

    def __init__(self, weights: list[Any], one: Any, many: Any, joined: Any, threads: int):
        self._calls: list[tuple[Any, tuple[Any, ...], int]] = []
        rows = [len(first) for first, *_ in weights]
        if threads > 1 and sum(first.size for first, *_ in weights) >= WORTH:
            for each, end in zip(weights, accumulate(rows), strict=True):
                self._calls.append((many, each, end - len(each[0])))
        elif len(weights) == 1:
            self._calls.append((one, weights[0], 0))
        else:  # a call costs as much as a small product
            missing = 3 - len(weights)
            kinds = ([*each, *[each[0][:0]] * missing] for each in zip(*weights, strict=True))
            self._calls.append((joined, tuple(chain.from_iterable(kinds)), 0))

    def __call__(self, x: np.ndarray, y: np.ndarray) -> None:
        for call, weights, at in self._calls:
            call(*weights, x, y, at)


class Four:
    """4 bits by integers: inputs are rounded to 8 bits, see `kernels/cpu/four_bits.py`."""

    def __init__(self, modules: Sequence[Int4Linear], rounded: Rounded, threads: int):
        self._sets, end = [], 0
        for module in modules:
            groups, outputs, _ = module.scales.shape
            self._inputs = groups * module.group
            arrays = host.arrays(module.packed, module.scales, module.group)
            self._sets.append((*arrays, end))
            end += outputs
        self._rounded = rounded
        many = threads > 1 and end * self._inputs >= WORTH
        self._call = INTEGERS.product_parallel if many else INTEGERS.product

    def __call__(self, x: np.ndarray, y: np.ndarray) -> None:
        room = self._rounded(len(x), self._inputs)
        INTEGERS.rounded(x, *room)
        for packed, scales, at in self._sets:
            self._call(packed, scales, *room, y, at)


class Joined:
    """A product of which every rank has some outputs: all have them all afterwards.

    `outputs` of each rank; `inputs` of each, where a rank has a part of these too.
    """

    def __init__(
        self,
        own: Product,
        peers: Peers,
        outputs: Sequence[int],
        inputs: Sequence[int] = (),
        bias: np.ndarray | None = None,
    ):
        self._own, self._peers, self._bias = own, peers, bias
        self._outputs, self._inputs = outputs, inputs

    def __call__(self, x: np.ndarray, y: np.ndarray) -> None:
        join = self._peers.joined
        given = (
            join(torch.from_numpy(x), 1, self._inputs).contiguous().numpy() if self._inputs else x
        )
        part = np.empty((len(x), self._outputs[self._peers.rank]), np.float32)
        self._own(given, part)
        if self._bias is not None:
            part += self._bias
        y[:] = join(torch.from_numpy(part), 1, self._outputs).numpy()


class Operators:
    """By torch's operators, for what is stored in other ways."""

    def __init__(self, modules: Sequence[nn.Module]):
        self._modules = modules

    def __call__(self, x: np.ndarray, y: np.ndarray) -> None:
        given, end = torch.from_numpy(x), 0
        wide, out = given.to(lowbit.WIDE), torch.from_numpy(y)
        for module in self._modules:
            if isinstance(module, Int4Linear):
                found = lowbit.operator(wide, module.packed, module.scales, module.group)
            elif isinstance(module, Int8Linear):
                found = Int8Linear(module.codes, module.scale)(given)
            else:
                assert isinstance(module, Linear), module
                found = nn.functional.linear(given.to(module.weight.dtype), module.weight)
            begin, end = end, end + found.shape[1]
            out[:, begin:end] = found
