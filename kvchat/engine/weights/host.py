"""Products of 4-bit weights and some tokens on a CPU, by compiled functions.

They round tokens to 8 bits, as tokens are that are decoded: where that is wanted, `rounding` says.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.weights import lowbit

# Values of a matrix, and of a layer's keys, that are worth waking other threads for.
WORTH = 2**22
MOST = 256  # tokens for which this is faster than to turn the weight back

_rounding = False


@contextmanager
def rounding() -> Iterator[None]:
    """Take tokens in 8 bits meanwhile, where functions for that are in use."""
    global _rounding
    _rounding = ops.compiled()
    try:
        yield
    finally:
        _rounding = False


def product(x: Tensor, packed: Tensor, scales: Tensor, group: int) -> Tensor | None:
    """`x [T, in]` times the transposed weight of `lowbit.quantize_groups`, fp32, `x` rounded to 8
    bits; a token's is the same whatever stands beside it. None: that is not wanted, or the
    functions are not this processor's."""
    if not _rounding or len(x) > MOST:
        return None
    from kvchat.kernels.cpu import quads  # takes numba in, which others do not need

    if not (quads.able() and lowbit.halves_of(64)):
        return None
    wide = np.ascontiguousarray(x.float().numpy())
    room: Any = quads.room(*wide.shape)  # type: ignore[no-untyped-call]
    quads.rounded(wide, *room)
    y = np.empty((len(wide), scales.shape[1]), np.float32)
    many = torch.get_num_threads() > 1 and y.shape[1] * wide.shape[1] >= WORTH
    call = quads.product_parallel if many else quads.product
    call(*arrays(packed, scales, group), *room, y, 0)
    return torch.from_numpy(y)


def arrays(packed: Tensor, scales: Tensor, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes `[out/64, in, 32]` and pairs of scale and zero `[in/g, out]` as the functions take
    them."""
    groups, outputs, _ = scales.shape
    pairs: Any = scales.detach().view(torch.int16).numpy()
    codes = packed.detach().numpy().reshape(outputs // 64, groups * group, 32)
    return codes, pairs.view(np.uint32).reshape(groups, outputs)
