"""Attention Matching: few entries that read like all of them. Arithmetic; knows no method.

Fast KV Compaction via Attention Matching (arXiv 2602.16284; `frontier.md` 2.7): the keys stay, a
bias per entry and new values are fitted in closed form to what queries read from the whole layer.
"""

from math import exp, inf

import torch
from torch import Tensor

LEAST, MOST = exp(-3), exp(3)  # by how much a bias may change an entry's weight
STEPS, POWER = 2, 3  # of projected descent, and of the power iteration that sets their size
RIDGES = (0.01, 0.1, 1.0)  # pull towards the plain entries, of the mean square of a column
HELD, RUN = 4, 8  # of every four runs of 8 queries one is held out


def fit(share: Tensor, values: Tensor, wanted: Tensor, also_values: bool) -> tuple[Tensor, Tensor]:
    """Weights `[r]` and values `[r, D]` (fp32) of the kept entries of one KV head.

    `share [n, r]` is what each of n queries gives to each entry, of its mass over the whole layer,
    `values [r, D]` what the entries hold, `wanted [n, D]` what the queries read from the whole
    layer. Fitted on most of the queries. On those that were held out neither the output's nor the
    log-sum-exp's mean squared error is above that of the plain entries, or the fit is not kept:
    then the weights are 1 and the values as they were.
    """
    held = torch.arange(len(share), device=share.device) // RUN % HELD == HELD - 1
    even = torch.ones_like(share[0])
    if not bool(held.any()):
        return even, values
    known, judged = share[~held], share[held]
    at_first = _errors(judged, even, values, wanted[held])
    best, chosen = 2.0, (even, values)  # the sum of both errors, beside the plain entries'
    for weight in (even, *(weights(known, ridge) for ridge in (inf, *RIDGES))):
        read = known * weight
        read = read / read.sum(dim=1, keepdim=True)
        tried = (refitted(read, values, wanted[~held], ridge) for ridge in RIDGES)
        for new in (values, *(tried if also_values else ())):
            errors = _errors(judged, weight, new, wanted[held])
            ratios = [
                now / max(before, 1e-12) for now, before in zip(errors, at_first, strict=True)
            ]
            if max(ratios) <= 1 and sum(ratios) < best:
                best, chosen = sum(ratios), (weight, new)
    return chosen


def weights(share: Tensor, ridge: float) -> Tensor:
    """Weights `[r]` with which the kept entries carry the mass of all: `share [n, r]` of it is
    theirs.

    Least squares of the relative mass, `|share w - 1|^2`, pulled towards the best weight that is
    the same for all entries (which changes no output; an infinite `ridge` is that one), then
    clamped and brought down by a few projected steps.
    """
    mass = share.sum(dim=1, keepdim=True)
    same = float(mass.sum() / mass.square().sum().clamp_min(1e-30))
    even = torch.full_like(share[0], same).clamp(LEAST, MOST)
    if ridge == inf:
        return even
    weight = (even + _ridge(share, 1 - share @ even[:, None], ridge)[:, 0]).clamp(LEAST, MOST)
    size = _norm(share)
    for _ in range(STEPS):
        weight = weight - share.T @ (share @ weight - 1) / size
        weight = weight.clamp(LEAST, MOST)
    return weight


def refitted(read: Tensor, values: Tensor, wanted: Tensor, ridge: float) -> Tensor:
    """Values `[r, D]` that entries read with weights `read [n, r]` need for outputs `wanted [n,
    D]`.

    Least squares, pulled towards `values`: where no query looks they stay.
    """
    return values + _ridge(read, wanted - read @ values, ridge)


def _ridge(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """The `w [r, m]` of least `|x w - y|^2 + pull |w|^2`; solved on the smaller side."""
    n, r = x.shape
    pull = ridge * float(x.square().sum()) / r
    gram = x.T @ x if r <= n else x @ x.T
    gram.diagonal().add_(max(pull, 1e-20))
    factor = torch.linalg.cholesky_ex(gram).L  # what fails is no number, and is not chosen
    if r <= n:
        return torch.cholesky_solve(x.T @ y, factor)
    return x.T @ torch.cholesky_solve(y, factor)


def _norm(x: Tensor) -> float:
    """The largest eigenvalue of `x' x`, nearly."""
    w = torch.ones(x.shape[1], device=x.device)
    for _ in range(POWER):
        w = x.T @ (x @ w)
        size = float(w.norm())
        w /= max(size, 1e-30)
    return max(size, 1e-30)


def _errors(share: Tensor, weight: Tensor, values: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Mean squared errors of the output and of the log-sum-exp."""
    read = share * weight
    mass = read.sum(dim=1, keepdim=True)
    output = (read @ values / mass - wanted).square().mean()
    return float(output), float(mass.log().square().mean())
