"""KCache: keys stay on the device, values at home; a token reads those that it needs most."""

from dataclasses import dataclass

from kvchat.engine.cache.keys import KeySegment
from kvchat.engine.cache.lookup import Reads
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.lookup import Lookup
from kvchat.engine.methods.lookup_options import KCacheOptions


@dataclass(frozen=True)
class KCache(KCacheOptions, Lookup):
    """Keeps every entry, its value elsewhere: a token attends to those with the largest logits.

    Efficient LLM Inference with Kcache, https://arxiv.org/abs/2404.18057. All keys are read for
    every token, and the values of `sinks`, of a window of the newest entries (`recent` of the rest)
    and of the best of the others. Different here: the queries of a KV head agree on entries
    (`aggregate`), weights add up to one over the entries that are read, and sinks and window are
    read in any case (not by `paper`). It halves what a card holds (`home=host`) or a process
    (`home=disk`).
    """

    segments = KeySegment

    @property
    def least(self) -> int:
        return 1

    def index(self, prefilled: Prefilled, coded: int, reads: Reads) -> KeySegment:
        values = self.stored_at_home(prefilled, prefilled.values[:, :coded])
        return KeySegment(prefilled.keys[:, :coded].clone(), values, reads, prefilled.start)
