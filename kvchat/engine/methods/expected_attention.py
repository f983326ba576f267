"""Expected Attention: what queries that have not come yet will attend to."""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.eviction import Eviction
from kvchat.engine.methods.needs import Needs
from kvchat.engine.methods.options import ExpectedOptions

SMALLEST = 1e-30  # of a value's norm


@dataclass(frozen=True)
class ExpectedAttention(ExpectedOptions, Eviction):
    """Scores entries by the attention of a Gaussian of queries, times the norm of the value.

    Expected Attention: KV Cache Compression by Estimating Attention from Future Queries
    Distribution, https://arxiv.org/abs/2510.00636. Mean and covariance of the document's queries
    before rotation are turned by the mean rotation of the next `future` positions. `epsilon` is
    added before the value norm.
    """

    @property
    def needs(self) -> Needs:
        return Needs(future=self.future)

    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        """Log of `(mean_g softmax(mu.k s + k' S k s^2 / 2) + epsilon) |v|`, without the sinks.

        In logs, since most of these numbers are too small for fp32 and would be ties.
        """
        assert prefilled.moments is not None, "the prefill gives what `needs` names"
        heads, _ = prefilled.shape
        keys = prefilled.keys[:, :entries].float()
        mean = prefilled.moments.mean.view(heads, -1, keys.shape[2])  # [H, G, D]
        logits = torch.einsum("hgd,hnd->hgn", mean, keys) * prefilled.scale
        covariance = prefilled.moments.covariance.view(*mean.shape, keys.shape[2])
        for group in range(mean.shape[1]):  # one [N, D] product at a time
            spread = torch.bmm(keys, covariance[:, group])  # [H, N, D]
            logits[:, group] += (spread * keys).sum(-1) * (prefilled.scale**2 / 2)
        if prefilled.position is None:  # a document, not a conversation
            logits[:, :, : min(self.sinks, entries)] = float("-inf")
        logits.masked_fill_(~prefilled.exists[:, None, :entries], float("-inf"))
        shares = torch.log_softmax(logits, dim=-1)
        expected = torch.logsumexp(shares, dim=1) - log(mean.shape[1])
        if self.epsilon:
            expected = torch.logaddexp(expected, torch.full_like(expected, log(self.epsilon)))
        norm = prefilled.values[:, :entries].float().norm(dim=-1)
        scores: Tensor = expected + norm.clamp_min(SMALLEST).log()
        return scores
