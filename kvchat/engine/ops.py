"""One function per operation that is not attention; the torch path. Attention has backends.

Each function has the name, signature and meaning of its twin in `kernels/reference.py`.
"""

import torch
from torch import Tensor

from kvchat.engine.sizes import MASS_VALUES
from kvchat.kernels import reference
from kvchat.kernels.reference import combine, rope, swiglu

__all__ = ["combine", "rms_norm", "rope", "swiglu", "window_mass"]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / rms(x) * weight` over the last dim; see the reference."""
    return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)


def window_mass(q: Tensor, k: Tensor, lse: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Mean mass per key from a window of queries, `[H*G, N]`; keys are taken in slices.

    Grouped queries meet unexpanded keys, so the workspace is `MASS_VALUES` logits whatever N is.
    """
    step = max(1, MASS_VALUES // (q.shape[0] * q.shape[1]))
    slices = [
        reference.window_mass(q, part, lse, seen - index * step, scale)
        for index, part in enumerate(k.split(step, dim=1))
    ]
    return torch.cat(slices, dim=1)
