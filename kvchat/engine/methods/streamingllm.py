"""StreamingLLM: attention sinks and a recent window."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.eviction import Eviction
from kvchat.engine.methods.scores import recency


@dataclass(frozen=True)
class StreamingLLM(Eviction):
    """Keeps the first `sinks` tokens and the most recent ones, the same in every head.

    Efficient Streaming Language Models with Attention Sinks, https://arxiv.org/abs/2309.17453.
    Different here: keys keep their true positions instead of being re-indexed inside the cache,
    since the document is read exactly and fits the window.
    """

    name: ClassVar[str] = "streamingllm"

    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        """The later, the better."""
        return recency(prefilled, entries)
