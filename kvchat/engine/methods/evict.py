"""The reduction that keeps some rows and frees the others. Knows scores and counts, no method."""

import torch
from torch import Tensor

from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods.base import Prefilled


def keep_all(prefilled: Prefilled) -> FlatSegment:
    """Every row stays: the lossless limit."""
    kept = torch.ones(prefilled.shape, dtype=torch.bool, device=prefilled.keys.device)
    return FlatSegment.keep(prefilled.keys, prefilled.values, kept, prefilled.start)


def keep_ranked(prefilled: Prefilled, order: Tensor, counts: Tensor, recent: int) -> FlatSegment:
    """Keep the first `counts[h]` rows of `order [H, N]` in each head and the last `recent` rows.

    `order` lists row numbers of the first `N = T - recent` tokens, best first.
    """
    heads, tokens = prefilled.shape
    scorable = order.shape[1]
    assert scorable + recent == tokens, f"{scorable} + {recent} rows are not {tokens}"
    rank = torch.arange(scorable, device=order.device)
    kept = torch.ones(heads, tokens, dtype=torch.bool, device=order.device)
    kept[:, :scorable].scatter_(1, order, rank < counts.to(order.device)[:, None])
    return FlatSegment.keep(prefilled.keys, prefilled.values, kept, prefilled.start)
