"""Attention whose logits are materialised in fp32, some queries at a time: for any device.

The host waits for nothing: lengths that only the device knows become a mask.
"""

import torch
from torch import Tensor

from kvchat.engine.attention.entries import Entries, dense, even
from kvchat.kernels.reference import dense_attention

QUERIES = 256  # at a time


def attend(q: Tensor, entries: Entries, scale: float) -> tuple[Tensor, Tensor]:
    """See `Backend.attend`: `q [T, H*G, D]` over all of `entries`.

    Heads of one length go together, others one after the other.
    """
    if entries.bias is None and even(entries.spans):
        length = entries.length if entries.bounds else None
        k, v = (dense(store, entries.spans) for store in (entries.k, entries.v))
        return _visible(q, k, v, length, None, scale)
    group = q.shape[1] // len(entries.spans)
    parts = []
    for head, (a, n) in enumerate(entries.spans):
        own = q[:, head * group : (head + 1) * group]
        k, v = entries.k[None, a : a + n], entries.v[None, a : a + n]
        length = entries.length[head : head + 1] if entries.bounds else None
        bias = None if entries.bias is None else entries.bias[None, a : a + n]
        parts.append(_visible(own, k, v, length, bias, scale))
    return torch.cat([o for o, _ in parts], 1), torch.cat([lse for _, lse in parts], 1)


def causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """See `Backend.causal`: `q [T, H*G, D]` over `k, v [H, T, D]`, query t sees entries 0..t."""
    parts = []
    for a in range(0, q.shape[0], QUERIES):
        b = min(a + QUERIES, q.shape[0])
        parts.append(dense_attention(q[a:b], k[:, :b], v[:, :b], scale, causal=True))
    return torch.cat([o for o, _ in parts]), torch.cat([lse for _, lse in parts])


def _visible(
    q: Tensor, k: Tensor, v: Tensor, length: Tensor | None, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """`q [T, H*G, D]` over the first `length [H]` entries of `k, v [H, N, D]`; None means all."""
    if length is not None:
        hidden = torch.arange(k.shape[1], device=k.device) >= length[:, None]  # [H, N]
        # what was never written may be NaN
        k, v = (store.masked_fill(hidden[..., None], 0.0) for store in (k, v))
        every = torch.zeros_like(hidden, dtype=torch.float32) if bias is None else bias
        bias = every.masked_fill(hidden, -torch.inf)
    parts = [dense_attention(p, k, v, scale, causal=False, bias=bias) for p in q.split(QUERIES)]
    return torch.cat([o for o, _ in parts]), torch.cat([lse for _, lse in parts])
