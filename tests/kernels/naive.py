"""Attention written once more, in float64 and with a loop per query head: the oracle of kernels."""

import torch
from torch import Tensor

from kvchat.engine.attention.entries import Entries


def attention(q: Tensor, parts: list[tuple[Tensor, Tensor, Tensor | None]], scale, causal=False):
    """`q [T, H*G, D]` over one `(k [N, D], v [N, D], bias [N])` per KV head; `o, lse` in float64.

    `causal` is bottom-right: the last query sees every entry."""
    tokens, query_heads, dim = q.shape
    group = query_heads // len(parts)
    o = torch.zeros(tokens, query_heads, dim, dtype=torch.float64)
    lse = torch.full((tokens, query_heads), float("-inf"), dtype=torch.float64)
    for head in range(query_heads):
        k, v, bias = parts[head // group]
        for t in range(tokens):
            seen = len(k) - tokens + t + 1 if causal else len(k)
            if seen <= 0:
                continue
            logits = k[:seen].double() @ q[t, head].double() * scale
            if bias is not None:
                logits = logits + bias[:seen].double()
            lse[t, head] = torch.logsumexp(logits, 0)
            o[t, head] = torch.softmax(logits, 0) @ v[:seen].double()
    return o, lse


def random_entries(
    lengths: list[int], dim: int, dtype=torch.float32, padding: int = 0, bias=False, seed: int = 0
) -> Entries:
    """Entries of random heads with `padding` dead entries, filled with NaN, before, between and
    after."""
    generator = torch.Generator().manual_seed(seed)
    starts, at = [], padding
    for n in lengths:
        starts.append(at)
        at += n + padding
    k, v = (torch.full((at, dim), float("nan"), dtype=dtype) for _ in range(2))
    weight = torch.full((at,), float("nan")) if bias else None
    for a, n in zip(starts, lengths, strict=True):
        k[a : a + n] = torch.randn(n, dim, generator=generator).to(dtype)
        v[a : a + n] = torch.randn(n, dim, generator=generator).to(dtype)
        if weight is not None:
            weight[a : a + n] = torch.randn(n, generator=generator)
    return Entries(
        k=k,
        v=v,
        start=torch.tensor(starts, dtype=torch.int32),
        length=torch.tensor(lengths, dtype=torch.int32),
        spans=tuple(zip(starts, lengths, strict=True)),
        bias=weight,
    )


def per_head(entries: Entries) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """The live entries of each KV head, as `attention` takes them."""
    stores = entries.k, entries.v, entries.bias
    return [
        tuple(None if store is None else store[a : a + n] for store in stores)
        for a, n in entries.spans
    ]
