"""Scores per row, shared by methods: what the observation queries attend to, pooled.

Knows no budget and no method.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.methods.base import Prefilled

POOLS = ("max", "avg")


def observed_mass(prefilled: Prefilled, rows: int) -> Tensor:
    """Attention mass of the first `rows` keys, `[H, rows]` fp32 (`adakv.md` 2.1, steps 1 to 6).

    Mean over the observation queries and over the query heads of a KV head. A head's masses sum to
    what its queries do not spend on later rows; they are not renormalised, for Ada-KV compares
    heads by them.
    """
    heads, _ = prefilled.shape
    mass = ops.window_mass(  # [H*G, rows]
        prefilled.queries,
        prefilled.keys[:, :rows],
        prefilled.lse,
        prefilled.seen,
        prefilled.scale,
    )
    return mass.view(heads, -1, rows).mean(dim=1)


def pool(scores: Tensor, kernel: int, kind: str) -> Tensor:
    """Smooth `scores [H, N]` along tokens, stride 1, odd `kernel` (SnapKV's clustering).

    `max` pads with -inf; `avg` counts zero padding, which damps the edges.
    """
    if kernel == 1 or scores.shape[1] == 0:
        return scores
    if kind == "max":
        return F.max_pool1d(scores[None], kernel, stride=1, padding=kernel // 2)[0]
    return F.avg_pool1d(scores[None], kernel, stride=1, padding=kernel // 2)[0]


def ranked(scores: Tensor) -> Tensor:
    """Row numbers by falling score, `[H, N]` int64; among equals the earlier token comes first."""
    return torch.sort(scores, dim=1, descending=True, stable=True).indices
