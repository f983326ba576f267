"""What of its document an answer is from, told by its own attention; see `engine.attribution`.

An answer may be long, and many are written at once: so of its tokens those alone are kept that
will be looked at, the ones that are rarest in the document.
"""

from bisect import insort
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from kvchat.engine import attribution
from kvchat.engine.attribution import Queries
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.engine import Engine


@dataclass(frozen=True)
class Cites:
    """That the sources of an answer are wanted: the document's `ids`, how often it has each token,
    and where in the tokens behind it the question begins that is answered."""

    ids: Sequence[int]
    counts: Counter[int]
    since: int = 0


@dataclass
class Kept(Queries):
    """The queries of those positions that are `wanted`, and of all from `since` on."""

    wanted: set[int] = field(default_factory=set)
    since: int = 0

    def see(
        self, q: Tensor, lse: Tensor, layer: LayerCache, scale: float, cos: Tensor, sin: Tensor
    ) -> None:
        """Take in the newest tokens."""
        first = layer.tail.start + layer.tail.length - len(q)
        for number in range(len(q)):
            if first + number in self.wanted or first + number >= self.since:
                self.take(q[number : number + 1], lse[number : number + 1], first + number)


class Cited:
    """Looks at the tokens of one answer, `asked` before it, on their way into its cache."""

    def __init__(self, engine: Engine, cache: KVCache, asked: Sequence[int], cites: Cites):
        self._cites, self._following = cites, dict[int, int]()
        self._ranked: list[tuple[int, int]] = []  # rank and position, of those that are kept
        self._layers = [cache.layers[number] for number in attribution.numbers(engine.config)]
        self._next = cache.position + len(asked)  # the position of the token that comes next
        self._kept: list[Kept] = []
        for number in range(cites.since + 1, len(asked)):
            self._follows(cache.position + number - 1, asked[number])
        for layer in self._layers:
            self._kept.append(Kept(layer, wanted=set(self._following), since=self._next - 1))
            layer.citing = self._kept[-1]

    def push(self, token: int, is_thought: bool) -> None:
        """A token follows; one that is the thought's counts nothing."""
        if is_thought:
            for each in self._kept:
                each.drop(self._next - 1)
        else:
            self._follows(self._next - 1, token)
        self._next += 1

    def weights(self) -> Generator[None, None, Tensor]:
        """How much the answer attends to each token of the document, `[N]`; yields after every
        layer."""
        for layer in self._layers:
            layer.citing = None
        return (yield from attribution.attending(self._kept, self._following, self._cites.ids))

    def _follows(self, position: int, token: int) -> None:
        """Keep a position if few are there that tell more, and let go of the one that tells
        least."""
        self._following[position] = token
        rank = attribution.rank(self._cites.counts[token], self._cites.ids)
        insort(self._ranked, (rank, position))
        if len(self._ranked) > attribution.TOKENS:
            _, least = self._ranked.pop()
            del self._following[least]
            for each in self._kept:
                each.drop(least)
