"""The reduction that keeps some entries and frees the others. Knows scores and counts, no
method.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods.base import Prefilled


def keep(prefilled: Prefilled, kept: Tensor) -> FlatSegment:
    """The entries where `kept [H, T]` is true."""
    start, end = prefilled.span
    return FlatSegment.keep(prefilled.keys, prefilled.values, kept, start, prefilled.position, end)


def keep_all(prefilled: Prefilled) -> FlatSegment:
    """Every entry stays: the lossless limit."""
    return keep(prefilled, prefilled.exists)


def keep_ranked(
    prefilled: Prefilled, order: Tensor, counts: Sequence[int], recent: int
) -> FlatSegment:
    """Keep the first `counts[h]` entries of `order [H, N]` in each head and the last `recent`
    entries.

    `order` lists entry numbers of the first `N = T - recent` entries, best first.
    """
    tokens, scorable = prefilled.shape[1], order.shape[1]
    assert scorable + recent == tokens, f"{scorable} + {recent} entries are not {tokens}"
    rank = torch.arange(scorable, device=order.device)
    kept = prefilled.exists
    first = rank < torch.tensor(counts, device=order.device)[:, None]
    kept[:, :scorable] = kept[:, :scorable].scatter(1, order, first)
    return keep(prefilled, kept)
