"""Twins of the kernels of a decoder block: norms, rotation, gates, products with few bits.

Letters as in `kernels/reference.py`.
"""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / rms(x) * weight` over the last dim, the statistics in fp32; shape and dtype of `x`.

    A weight in fp32 is applied before rounding.
    """
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (weight * normed.to(weight.dtype)).to(x.dtype)


def add_rms_norm(
    x: Tensor,
    delta: Tensor,
    weight: Tensor | None,
    eps: float,
    behind: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The residual stream `x [T, hidden]` after a sub-layer's `delta`, and the next one's input.

    The sum is `x + scale * delta`, with `delta` normed by the weight `behind` if there is one; the
    other is the sum's `rms_norm` by `weight`, or the sum itself if there is none.
    """
    if behind is not None:
        delta = rms_norm(delta, behind, eps)
    added = x + delta * scale
    return added, added if weight is None else rms_norm(added, weight, eps)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `x [T, heads, D]` by `cos, sin [T, D/2]` (fp32), pairing dim i with dim i + D/2.

    Rotary embedding (arXiv 2104.09864) in the half-split layout of Llama checkpoints.
    """
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    lower = torch.addcmul(first * cos, second, sin, value=-1)
    upper = torch.addcmul(second * cos, first, sin)
    return torch.cat((lower, upper), dim=-1).to(x.dtype)


def place_entries(
    joined: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    place: Tensor,
    norms: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0,
    factors: Tensor | None = None,
    raised: Tensor | None = None,
) -> Tensor:
    """What stands between a layer's projections and its attention, for T new tokens.

    `joined [T, (H*G + 2H) * D]` has queries, keys and values side by side. Queries and keys are
    normed (`norms` are weights `[D]` of a head, or of all heads together), rotated by `cos, sin
    [T, D/2]` (fp32), and queries are multiplied by `factors [D]` (fp32) and `raised [T]` (fp32).
    Keys and values go into `keys, values [H, capacity, D]` from entry `place [1]` (int64) on.
    Returns the queries `[T, H*G, D]`.
    """
    heads, _, dim = keys.shape
    tokens = len(joined)
    queries = joined.shape[1] // dim - 2 * heads
    q, k, v = joined.split((queries * dim, heads * dim, heads * dim), dim=1)
    if norms is not None:
        by_head = norms[0].shape == (dim,) == norms[1].shape
        q, k = (
            rms_norm(x.reshape(tokens, -1, dim) if by_head else x, weight, eps)
            for x, weight in zip((q, k), norms, strict=True)
        )
    q, k = (rope(x.reshape(tokens, -1, dim), cos, sin) for x in (q, k))
    if factors is not None:
        q = q * factors.to(q.dtype)
    if raised is not None:
        q = q * raised.to(q.dtype)[:, None, None]
    at = place + torch.arange(tokens, device=place.device)
    keys.index_copy_(1, at, k.transpose(0, 1))
    values.index_copy_(1, at, v.reshape(tokens, -1, dim).transpose(0, 1))
    return q


def int8_product(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x [T, in]` times the weight `codes [out, in]` (int8) with a `scale [out]` per row.

    `[T, out]` in the dtype of `x`; `bias [out]` is added.
    """
    y = torch.nn.functional.linear(x, codes.to(x.dtype)) * scale.to(x.dtype)
    return y if bias is None else y + bias


def int4_numbers(packed: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight `[out, in]` of `packed [out, in / 2]` codes, `(code - 8) * scale + zero`.

    A byte holds two neighbours of a row, the first in its low half; `scales [in/g, out, 2]` are
    scale and zero of each group of g.
    """
    codes = torch.stack((packed & 15, packed >> 4), dim=2).view(len(packed), len(scales), -1)
    scale, zero = scales.transpose(0, 1)[..., None].float().unbind(2)  # [out, in/g, 1]
    return torch.addcmul(zero, codes.float() - 8, scale).to(dtype).flatten(1)


def int4_product(x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x [T, in]` times the weight that `int4_numbers` gives, `[T, out]`, in the dtype of `x`."""
    return torch.nn.functional.linear(x, int4_numbers(packed, scales, x.dtype), bias)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, element by element (arXiv 2002.05202)."""
    return torch.nn.functional.silu(gate) * up


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """`gelu(gate) * up`, element by element, GELU by its tanh formula (arXiv 2002.05202)."""
    return torch.nn.functional.gelu(gate, approximate="tanh") * up
