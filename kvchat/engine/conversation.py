"""The turns of a conversation, in the cache behind a document: fed, taken back, compressed; the
oldest are dropped where the context window is full."""

from collections.abc import Generator, Sequence
from dataclasses import replace
from itertools import accumulate

from kvchat.engine.attribution import Queries
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.segment import Memory
from kvchat.engine.compaction import folding
from kvchat.engine.context_window import ids_of, require_room, tokens_of
from kvchat.engine.engine import Engine
from kvchat.engine.events import Progress, Smaller, Turn, drain
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.cascade import Cascade
from kvchat.engine.text.chat_template import Dialogue, common

Work = Generator[Progress | Smaller, None, None]


class Conversation:
    """Turns behind a document, and the cache that holds both.

    Nothing is rendered or tokenised twice: turns own their tokens, and the last sampled token is
    *pending*, to be fed with the next turn. With a `tail_budget` the turns hold at most so many
    entries per KV head, see `_fold`; with a `cascade` as many as that has, and a conversation does
    not end where the window does.
    """

    def __init__(
        self,
        engine: Engine,
        dialogue: Dialogue,
        end_tokens: Sequence[int] = (),
        limit: int = 0,
        tail_budget: int = 0,
        streams: bool = False,
        cascade: Cascade | None = None,
    ):
        self.engine, self.dialogue, self.streams = engine, dialogue, streams
        self.limit = limit or engine.config.context_limit
        self.ends = dialogue.end_tokens | set(engine.config.end_tokens) | set(end_tokens)
        self.tail_budget, self.cascade = tail_budget, cascade
        self.document: list[int] = []
        self.turns: list[Turn] = []
        self.forgotten: list[Turn] = []  # the oldest, for which the window had no room
        self.method: Method | None = None  # that compresses old turns
        self._cache: KVCache | None = None
        self._part: list[int] | None = None  # ids behind the document, if they are not the turns'
        self._saved = 0  # positions that the document itself takes less than it has tokens
        self._seen: list[Queries] = []  # of the last answer, by layer

    @property
    def cache(self) -> KVCache:
        """What is kept of document and turns; empty before the first prefill."""
        if self._cache is None:
            self._cache = self.engine.empty_cache()
        return self._cache

    @property
    def window(self) -> int:
        """Tokens that the context window has room for, the document's included: more than `limit`
        where a long one was moved together."""
        return self.limit + self.cache.saved

    def memory(self) -> Memory:
        """Exact bytes of the cache."""
        return self.cache.memory()

    def full_bytes(self) -> int:
        """Bytes that the tokens seen would hold uncompressed, on this rank."""
        return self.engine.kv_bytes(self.cache.position) // self.engine.peers.count

    @property
    def compacted(self) -> int:
        """Tokens of the conversation whose turns are compressed."""
        return self.cache.frozen - len(self.document)

    @property
    def all_turns(self) -> list[Turn]:
        """Every turn there was, those that the model no longer sees first."""
        return [*self.forgotten, *self.turns]

    def retold(self, turns: Sequence[Turn]) -> list[Turn]:
        """Turns of a chat with another model, in the tokens of this one."""
        found: list[Turn] = []
        for turn in turns:
            asked = self._turn_ids(turn.question, found)
            answer = self.dialogue.tokenizer.encode([(turn.answer, False)], continues=True)
            ids = (*asked, *answer)
            found.append(Turn(turn.question, turn.answer, "stop", ids, len(asked)))
        return found

    def restore(self, turns: Sequence[Turn]) -> Work:
        """Feed turns of an earlier conversation after those that are there.

        The oldest go where the window has no room for all. If the consumer stops in between, the
        session is as it was.
        """
        there, every = len(self.turns), [*self.turns, *turns]
        if not there:  # they may have been written under another system prompt
            every = self._opening(every, self.dialogue)
        every = [*self._past(every[:-1]), *every[-1:]]
        if self.cascade is not None:
            yield from self._holding(every)
            return
        if len(self.document) + tokens_of(every) > self.window:
            left = self._newest(every, 1)
            yield from self._holding(left)
            self.forgotten += every[: len(every) - len(left)]
        else:
            if ids := ids_of(every[there:]):
                drain(self._holding(every[:there]))
                yield from self.engine.extend(self.cache, ids)
            self.turns = every
        self._fold()

    def rephrase(self, dialogue: Dialogue) -> Work:
        """Go on in another form of a conversation about the same document: its turns are fed again,
        of which the oldest go where the window has no room for all.

        If the consumer stops in between, the session is as it was.
        """
        turns = self._opening(self.turns, dialogue)
        left = self._newest(turns, 1, dialogue=dialogue)
        yield from self._holding(left)
        self.forgotten += turns[: len(turns) - len(left)]
        self.dialogue = dialogue

    def back(self, turns: Sequence[Turn], forgotten: Sequence[Turn]) -> Work:
        """Be where the conversation was with these `turns` in the window and those before them
        `forgotten`."""
        yield from self._holding([*turns])
        self.forgotten = [*forgotten]

    # Which turns there are

    def _past(self, turns: Sequence[Turn]) -> list[Turn]:
        """Turns as they are once others follow: without thoughts, if the template drops them."""
        return [self.dialogue.past(turn, number == 0) for number, turn in enumerate(turns)]

    def _newest(
        self, turns: list[Turn], needed: int, least: int = 0, dialogue: Dialogue | None = None
    ) -> list[Turn]:
        """Those of `turns`, at least so many of the last, that leave the window room for `needed`
        tokens.

        Where some must go, a quarter of the room is freed: those that stay are fed again, which
        should not be due for every question.
        """
        room, dialogue = self.window - len(self.document), dialogue or self.dialogue
        if tokens_of(turns) + needed <= room:
            return turns
        for first in range(1, len(turns) - least):
            left = self._opening(turns[first:], dialogue)
            if tokens_of(left) <= (room - needed) * 3 // 4:
                return left
        return self._opening(turns[len(turns) - least :], dialogue)

    def _opening(self, turns: Sequence[Turn], dialogue: Dialogue) -> list[Turn]:
        """Turns of which the first stands behind the document, in the form of `dialogue`."""
        if not turns:
            return []
        first, *rest = turns
        changed = first.whole or first
        ids = dialogue.first(changed.question, changed.thinks)
        changed = replace(changed, ids=(*ids, *changed.ids[changed.asked :]), asked=len(ids))
        return [dialogue.past(changed, is_first=True) if first.whole else changed, *rest]

    def _turn_ids(
        self, question: str, turns: Sequence[Turn], thinks: bool | None = None
    ) -> list[int]:
        """What a question after these turns puts into the cache."""
        if not turns:
            return self.dialogue.first(question, thinks)
        ids = self.dialogue.following(question, thinks)
        pending = list(turns[-1].pending)
        if not pending or pending[0] not in self.ends:
            return pending + ids
        # The end token that was sampled is the template's own, or stands in its place; what the
        # template writes before its own (a space, in some) was not sampled.
        end = next((i for i, token in enumerate(ids) if token in self.ends), None)
        if end is None or self.dialogue.tokenizer.decode(ids[:end]).strip():
            return pending + ids
        return ids[end:]

    # What the cache holds of them

    def _holding(self, turns: list[Turn]) -> Generator[Progress | Smaller, None, bool]:
        """Let the cache hold these turns; what it has of them already is not fed again.

        The value is True. If the consumer stops in between, the turns are those that were there,
        and the cache gets them when it is wanted next.
        """
        held = ids_of(self.turns) if self._part is None else self._part
        wanted = ids_of(turns)
        same = common(held, wanted)
        if same < max(len(held), len(wanted)):
            if not self._rewind(len(self.document) + same):
                same = 0
            self._part = wanted[:same]
            for item in self._feed(self.cache, len(self.document), turns, same, self.method):
                if isinstance(item, int):
                    self._part = wanted[:item]
                else:
                    yield item
        self.turns, self._part = turns, None
        return True

    def _feed(
        self, cache: KVCache, start: int, turns: Sequence[Turn], held: int, folds: Method | None
    ) -> Generator[Progress | Smaller | int, None, None]:
        """Append the tokens of `turns`, of which the first `held` are there, to a cache in which
        they begin at `start`. Yields how many are there, each time that it is a new number.

        Where the chat does not end they go turn by turn, each compressed as it would have been.
        """
        wanted = ids_of(turns)
        ends = list(accumulate(len(turn.ids) for turn in turns))
        for number, end in enumerate(ends, 1):
            if end <= held or (self.cascade is None and number < len(ends)):
                continue
            yield from self.engine.extend(cache, wanted[held:end])
            held = end
            yield held
            if self.cascade is not None:
                self._compress(cache, start, turns[:number], folds)

    def _rewind(self, position: int) -> bool:
        """Forget the tokens from `position` on; False if all of the conversation had to go."""
        for queries in self._seen:
            queries.forget(position)
        if position >= self.cache.frozen:
            self.cache.truncate(position)
            self.cache.forget(position)
            return True
        self.cache.thaw(len(self.document), self._saved)
        self._watch(self.cache, self.method)
        return False

    def _watch(self, cache: KVCache, folds: Method | None, since: int | None = None) -> None:
        """Let a cache gather what compressing its turns will need."""
        if rule := self._rule(folds):
            start = len(self.document) if since is None else since
            self.engine.watch(cache, rule[1], start)

    def _rule(self, folds: Method | None) -> tuple[int, Method] | None:
        """How many live entries turns may have, and what compresses older ones."""
        if self.cascade is not None:
            return self.cascade.size, self.cascade
        if self.tail_budget and folds is not None:
            return self.tail_budget // 2, folding(folds, self.tail_budget)
        return None

    def _fold(self, live: int | None = None) -> None:
        """Compress the oldest turns if there are more live entries than may be, or than `live`;
        give back what is preallocated."""
        self.cache.trim()
        self._compress(self.cache, len(self.document), self.turns, self.method, live)

    def _compress(
        self,
        cache: KVCache,
        start: int,
        turns: Sequence[Turn],
        folds: Method | None,
        live: int | None = None,
    ) -> None:
        """The same for a cache that holds `turns` from `start` on.

        Whole turns are compressed, never the newest one, unless nothing may be live.
        """
        rule = self._rule(folds)
        if rule is None:
            return
        most = rule[0] if live is None else live
        if cache.position - cache.frozen <= most:
            return
        ends = list(accumulate((len(turn.ids) for turn in turns), initial=start))[1:]
        ends = ends if live == 0 else ends[:-1]
        end = next((end for end in ends if cache.position - end <= most), max(ends, default=0))
        if end > cache.frozen:
            self.engine.fold(cache, rule[1], start, end)

    def _gathered(self, past: list[Turn], needed: int) -> Work:
        """Let the cascade make room for `needed` tokens behind these turns."""
        if self.cascade is None:
            return
        yield from self._holding(past)
        if self.cache.rotary + needed > self.limit:
            self._fold(live=0)

    # The window

    def _room(self, used: int, needed: int) -> int:
        """Tokens for an answer behind `used` ones and a question that needs some. Raises
        KvchatError("too_long")."""
        turns = used > len(self.document)
        return require_room(self.limit, self.cache.saved, used, needed, turns)
