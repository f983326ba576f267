"""How many rows each head may keep, shared by methods. Totals are exact. Knows no method."""

import torch
from torch import Tensor


def uniform(total: int, heads: int, rows: int) -> Tensor:
    """`total` rows shared evenly over `heads` heads of `rows` rows, `[H]` int64.

    The first heads take the remainder. `total <= heads * rows`.
    """
    assert 0 <= total <= heads * rows, f"{total} rows do not fit into {heads} heads of {rows}"
    share = torch.full((heads,), total // heads)
    share[: total % heads] += 1
    return share


def adaptive(scores: Tensor, total: int, floor: float) -> Tensor:
    """Ada-KV's allocation, "floor first, then global" (`adakv.md` 2.3, rule b/c), `[H]` int64.

    Every head is sure of the fraction `floor` of an even share; what remains of `total` goes to the
    best remaining `scores [H, N]` of all heads together. The sum is exactly `total`. Uniform
    shares are feasible for it, so the retained mass, and with it the bound of Ada-KV
    (arXiv 2407.11550, theorem 3.1), is never worse than uniform.
    Ties: lower head first, then the earlier token.
    """
    heads, rows = scores.shape
    assert 0 <= total <= heads * rows, f"{total} rows do not fit into {heads} heads of {rows}"
    sure = min(int(floor * (total // heads)), rows)
    best = torch.sort(scores, dim=1, descending=True).values
    rest = best[:, sure:].flatten()
    chosen = torch.sort(rest, descending=True, stable=True).indices[: total - heads * sure]
    hits = torch.bincount(chosen.div(max(rows - sure, 1), rounding_mode="floor"), minlength=heads)
    return (hits + sure).cpu()
