"""How many entries each layer and each head may keep. Totals are exact.

An entry of score -inf does not exist: it is never counted.
"""

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from math import ceil

import torch
from torch import Tensor

ABSENT = float("-inf")


def uniform(total: int, existing: Sequence[int]) -> list[int]:
    """`total` entries shared evenly over heads that have `existing[h]` entries.

    The first heads take the remainder; what a short head cannot take goes to the others.
    """
    assert 0 <= total <= sum(existing), f"{total} entries are not among {list(existing)}"

    def taken(level: int) -> int:
        return sum(min(level, entries) for entries in existing)

    level = bisect_right(range(total + 1), total, key=taken) - 1
    counts = [min(level, entries) for entries in existing]
    more = [head for head, entries in enumerate(existing) if entries > level]
    for head in more[: total - taken(level)]:
        counts[head] += 1
    return counts


def adaptive(scores: Tensor, total: int, floor: float) -> list[int]:
    """Ada-KV's allocation, "floor first, then global".

    Every head is sure of the fraction `floor` of an even share; what remains of `total` goes to the
    best remaining `scores [H, N]` of all heads together. The sum is exactly `total`. Uniform
    shares are feasible for it, so the retained mass, and with it the bound of Ada-KV
    (arXiv 2407.11550, theorem 3.1), is never worse than uniform.
    Ties: lower head first, then the earlier token.
    """
    heads, entries = scores.shape
    existing = (scores != ABSENT).sum(dim=1)
    assert 0 <= total <= int(existing.sum()), f"{total} entries are not among {existing.tolist()}"
    sure = existing.clamp(max=int(floor * (total // heads)))
    best = torch.sort(scores, dim=1, descending=True).values
    rank = torch.arange(entries, device=scores.device)
    best = best.masked_fill(rank < sure[:, None], float("inf"))
    chosen = torch.sort(best.flatten(), descending=True, stable=True).indices[:total]
    return torch.bincount(chosen // max(entries, 1), minlength=heads).tolist()


def shared(pooled: Sequence[int], total: int, heads: int, even: float) -> list[int]:
    """Shares of heads that have `pooled[h]` of the best entries of all `heads` heads together.

    Each gets the fraction `even` of an even share of `total`, and the rest by what it has among the
    best. Shares are rounded up as long as there are heads to come; then they add up to `total`.
    """
    part = Fraction(even).limit_denominator(10**6)
    sure = part * Fraction(total, heads)
    shares = [(1 - part) * count + sure for count in pooled]
    return largest_remainder(shares) if len(pooled) == heads else [ceil(each) for each in shares]


def mixed(scores: Tensor, total: int, alpha: float) -> list[int]:
    """The shares of Ada-KV's authors (as in their code), with an exact total.

    `(1 - alpha)` of the pooled ranking's shares plus `alpha` of even ones, rounded by largest
    remainder where the authors' code rounds each head by itself and loses or adds entries.
    """
    pooled = adaptive(scores, total, 0.0)
    even = uniform(total, (scores != ABSENT).sum(dim=1).tolist())
    part = Fraction(alpha).limit_denominator(10**6)
    return largest_remainder([(1 - part) * p + part * e for p, e in zip(pooled, even, strict=True)])


def pyramid(total: int, layers: int, most: int, beta: int) -> list[int]:
    """PyramidKV's layer budgets (arXiv 2406.02069, section 3.2), `layers * total` in all.

    They fall in a line from the first layer to the last, around `total` entries of a layer that has
    `most`: the last layer gets `total / beta`; if the first would need more than `most`, the line
    is flatter. Real numbers are rounded by largest remainder, so nothing is added or lost.
    """
    assert 0 <= total <= most, f"{total} of {most} entries"
    top = min(2 * total - Fraction(total, beta), Fraction(most))
    fall = 2 * (top - total) / max(layers - 1, 1)
    line = [top - fall * layer for layer in range(layers)] if layers > 1 else [Fraction(total)]
    return largest_remainder(line)


def largest_remainder(shares: Sequence[Fraction]) -> list[int]:
    """Whole numbers of the same sum, each `shares[i]` rounded down or up; ties: the lower index."""
    counts = [int(share) for share in shares]
    missing = int(sum(shares)) - sum(counts)
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    for index in by_remainder[:missing]:
        counts[index] += 1
    return counts
