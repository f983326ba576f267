"""StreamingLLM: attention sinks and a recent window."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvchat.engine.budget import DEFAULT_BUDGET, Budget
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.budgets import uniform
from kvchat.engine.methods.evict import keep_all, keep_ranked
from kvchat.errors import KvchatError


@dataclass(frozen=True)
class StreamingLLM:
    """Keeps the first `sinks` tokens and the most recent ones, the same in every head.

    Efficient Streaming Language Models with Attention Sinks, https://arxiv.org/abs/2309.17453.
    Different here: keys keep their true positions instead of being re-indexed inside the cache,
    since the document is read exactly and fits the window.
    """

    budget: Budget = DEFAULT_BUDGET
    sinks: int = 4
    observed: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.sinks < 0:
            raise KvchatError("usage", f"streamingllm: sinks={self.sinks} is negative", "sinks=4")

    def compress(self, prefilled: Prefilled) -> FlatSegment:
        """`sinks` rows and the newest rows of each head, `budget` in all."""
        heads, tokens = prefilled.shape
        counts = uniform(prefilled.allowed(self.budget), heads, tokens)
        if int(counts.min()) == tokens:
            return keep_all(prefilled)
        sinks = min(self.sinks, int(counts.min()) - 1)  # the newest row always stays
        newest = torch.arange(tokens - 1, sinks - 1, -1)
        order = torch.cat((torch.arange(sinks), newest)).expand(heads, tokens)
        return keep_ranked(prefilled, order.to(prefilled.keys.device), counts, recent=0)
