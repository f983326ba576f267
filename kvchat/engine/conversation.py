"""`Conversation`: a cache of a document, and the turns after it: taken back, folded, fed again."""

from collections.abc import Generator, Sequence
from itertools import accumulate

from kvchat.engine.cache.layer import KVCache
from kvchat.engine.cache.memory import Memory
from kvchat.engine.engine import Engine
from kvchat.engine.events import Progress, Smaller, drain
from kvchat.engine.fold import folding, watch
from kvchat.engine.methods.base import Method
from kvchat.engine.prefill.observation import Observation
from kvchat.engine.sizes import reserve_of
from kvchat.engine.turn import Turn
from kvchat.errors import KvchatError


def require_fit(tokens: int, limit: int, name: str = "the document") -> None:
    """Raise KvchatError("too_long") unless `tokens` leave room for a question in the window."""
    reserve = reserve_of(limit)
    if tokens + reserve > limit:
        share = (limit - reserve) / tokens
        raise KvchatError(
            "too_long",
            f"{name} needs {tokens:,} tokens; the model takes {limit:,} "
            f"({reserve:,} are kept for questions and answers)",
            f"give {tokens + reserve - limit:,} tokens less: about the first {share:.0%} fit",
            "--model with a longer context window",
            needed=tokens,
            limit=limit,
            reserve=reserve,
        )


class Conversation:
    """A document in a cache, and turns that stay in its tail.

    With a `tail_budget` the turns hold at most so many entries per KV head: the oldest ones are
    folded, see `fold`.
    """

    def __init__(self, engine: Engine, limit: int = 0, tail_budget: int = 0):
        self.engine = engine
        self.limit = limit or engine.config.context_limit
        self.cache = engine.empty_cache()
        self.document: list[int] = []
        self.turns: list[Turn] = []
        self.method: Method | None = None  # that folds turns
        self.tail_budget = tail_budget

    def adopt(self, cache: KVCache, ids: Sequence[int], method: Method | None = None) -> None:
        """Talk over this cache of the document `ids` from now on; earlier turns are forgotten.

        `method` is what folds turns, if a tail budget is set.
        """
        assert cache.position == len(ids), f"{cache.position} tokens read of {len(ids)}"
        self.cache, self.document, self.turns, self.method = cache, list(ids), [], method
        self._watch(cache, len(ids), method)

    def restore(self, turns: Sequence[Turn]) -> Generator[Progress | Smaller, None, None]:
        """Feed turns of an earlier conversation after those that are there.

        If the consumer stops in between, the session is as it was.
        """
        if ids := [i for turn in turns for i in turn.ids]:
            require_fit(self.cache.position + len(ids), self.limit, "the saved conversation")
            yield from self.engine.extend(self.cache, ids)
        self.turns = [*self.turns, *turns]
        self._fold()

    @property
    def folded(self) -> int:
        """Tokens of the conversation that were folded: their turns are compressed."""
        return self.cache.frozen - len(self.document)

    def undo(self, count: int = 1) -> list[Turn]:
        """Forget the last `count` turns and return them.

        Nothing is read again, unless a turn that stays was folded together with one that goes:
        then the turns that stay are.
        """
        assert 0 <= count <= len(self.turns), f"cannot undo {count} of {len(self.turns)} turns"
        kept, dropped = self.turns[: len(self.turns) - count], self.turns[len(self.turns) - count :]
        talk = [i for turn in kept for i in turn.ids]
        if not self._rewind(len(self.document) + len(talk)) and talk:
            drain(self.engine.extend(self.cache, talk))
        self.turns = kept
        for layer in self.cache.layers:
            layer.tail.trim()
        return dropped

    def clear(self) -> None:
        """Forget the conversation and keep the document: the tail gets shorter."""
        self.undo(len(self.turns))

    def memory(self) -> Memory:
        """Exact bytes of the cache."""
        return self.cache.memory()

    def full_bytes(self) -> int:
        """Bytes that the tokens seen would hold uncompressed."""
        return self.cache.position * self.engine.kv_bytes_per_token

    def _rewind(self, position: int) -> bool:
        """Forget the tokens from `position` on; False if all of the conversation had to go."""
        if position >= self.cache.frozen:
            self.cache.truncate(position)
            for layer in self.cache.layers:
                if isinstance(layer.observer, Observation):
                    layer.observer.forget(position)
            return True
        self.cache.thaw(len(self.document))
        self._watch(self.cache, len(self.document), self.method)
        return False

    def _watch(self, cache: KVCache, since: int, method: Method | None) -> None:
        """Let a cache gather what folding its turns will need."""
        if self.tail_budget and method is not None:
            watch(cache, folding(method, self.tail_budget), since)

    def _fold(self) -> None:
        """Compress the oldest turns if the live ones exceed half of the tail budget.

        Whole turns are folded, never the newest one.
        """
        if not self.tail_budget or self.method is None:
            return
        half, position = self.tail_budget // 2, self.cache.position
        if position - self.cache.frozen <= half:
            return
        lengths = (len(turn.ids) for turn in self.turns)
        # where a turn ends that is not the newest
        ends = list(accumulate(lengths, initial=len(self.document)))[1:-1]
        end = next((end for end in ends if position - end <= half), max(ends, default=0))
        if end > self.cache.frozen:
            method = folding(self.method, self.tail_budget)
            self.engine.fold(self.cache, method, len(self.document), end)
