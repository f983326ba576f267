"""`Session`: one document, many questions. Text in, events out; knows nothing of the terminal."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from time import perf_counter

from torch import Tensor

from kvchat.engine.answer import Answer
from kvchat.engine.cache.layer import KVCache
from kvchat.engine.cache.memory import Memory
from kvchat.engine.dialogue import Dialogue
from kvchat.engine.engine import Engine
from kvchat.engine.events import Delta, Progress, Smaller, TurnDone, drain
from kvchat.engine.fold import folding, watch
from kvchat.engine.methods.base import Method
from kvchat.engine.observation import Observation
from kvchat.engine.prefill import Compression, Reading
from kvchat.engine.sampling import Sampling
from kvchat.engine.sizes import reserve_of
from kvchat.engine.telling import tellings
from kvchat.engine.tokenizer import TextStream
from kvchat.errors import KvchatError

MAX_TOKENS = 2048


@dataclass(frozen=True)
class Turn:
    """A question and its answer, with their tokens.

    `ids` is what the turn put into the cache; the first `asked` of them end where the answer
    begins. `pending` is the last sampled token, which the next turn feeds.
    """

    question: str
    answer: str
    finish_reason: str
    ids: tuple[int, ...] = ()
    asked: int = 0
    pending: tuple[int, ...] = ()

    @property
    def tokens(self) -> tuple[int, ...]:
        """The answer's tokens."""
        return (*self.ids[self.asked :], *self.pending)


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


class Session:
    """The conversation: a document read once, and turns that stay in the cache's tail.

    The last sampled token is *pending*: it is fed with the next turn. Nothing is rendered or
    tokenised twice. With a `tail_budget` the conversation holds at most so many rows per KV head:
    its oldest turns are folded, see `fold`.
    """

    def __init__(
        self,
        engine: Engine,
        dialogue: Dialogue,
        end_tokens: Sequence[int] = (),
        limit: int = 0,
        tail_budget: int = 0,
    ):
        self.engine = engine
        self.dialogue = dialogue
        self.ends = dialogue.end_tokens | set(engine.config.end_tokens) | set(end_tokens)
        self.limit = limit or engine.config.context_limit
        self.cache = engine.empty_cache()
        self.select_seconds = 0.0  # that compressing took at the last reading
        self.document: list[int] = []
        self.turns: list[Turn] = []
        self.method: Method | None = None  # that folds turns
        self.tail_budget = tail_budget
        self._asked = 0  # questions begun: an abandoned one must not undo a later one

    def read(
        self,
        ids: Sequence[int],
        compressions: Sequence[Compression],
        questions: Sequence[str] = (),
    ) -> Generator[Progress | Smaller, None, Reading]:
        """Read a document once into one cache per compression; `questions` are its probes.

        The session itself does not change: `adopt` one of the caches to talk over it.
        """
        require_fit(len(ids), self.limit)
        probes = [self.dialogue.first(question) for question in questions]
        kinds = frozenset[str]().union(*(c.method.needs.kinds for c in compressions))
        replays = tellings(self.dialogue, ids, kinds)
        return (yield from self.engine.prefill(ids, compressions, probes, replays))

    def open(
        self, ids: Sequence[int], method: Method, folds: Method | None = None
    ) -> Generator[Progress | Smaller, None, None]:
        """Read `ids` (of `Dialogue.document`) with a method and begin a conversation about them.

        Turns are folded with the same method, or with `folds`. If the consumer stops in between,
        the session is as it was.
        """
        if not ids:
            return self.adopt(self.engine.empty_cache(), ids, folds or method)
        reading = yield from self.read(ids, [Compression(method)])
        self.select_seconds = reading.select_seconds
        self.adopt(reading.caches[0], ids, folds or method)

    def adopt(self, cache: KVCache, ids: Sequence[int], method: Method | None = None) -> None:
        """Talk over this cache of the document `ids` from now on; earlier turns are forgotten.

        `method` is what folds turns, if a tail budget is set.
        """
        assert cache.position == len(ids), f"{cache.position} tokens read of {len(ids)}"
        self.cache, self.document, self.turns, self.method = cache, list(ids), [], method
        self._watch(cache, len(ids), method)

    def use(
        self,
        method: Method,
        questions: Sequence[str] = (),
        document: Sequence[int] | None = None,
        dialogue: Dialogue | None = None,
    ) -> Generator[Progress | Smaller, None, None]:
        """Read the document and the turns again, with another method or another document.

        With `questions` the method scores rows by them and not by the document's end. `dialogue`
        replaces the form of the conversation. If the consumer stops in between, the session is as
        it was. Raises KvchatError("too_long").
        """
        if self.tail_budget:
            folding(method, self.tail_budget)  # refused before anything is read
        ids = self.document if document is None else list(document)
        dialogue = dialogue or self.dialogue
        turns = self._turns_in(dialogue)
        talk = [i for turn in turns for i in turn.ids]
        if document is not None:
            require_fit(len(ids) + len(talk), self.limit, "the document with the conversation")
        cache, select = self.engine.empty_cache(), 0.0
        if ids:
            compression = Compression(method, tuple(range(len(questions))))
            reading = yield from self.read(ids, [compression], questions)
            cache, select = reading.caches[0], reading.select_seconds
        self._watch(cache, len(ids), method)
        if talk:
            yield from self.engine.extend(cache, talk)
        self.cache, self.document, self.turns = cache, ids, turns
        self.dialogue, self.select_seconds, self.method = dialogue, select, method
        self._fold()

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
        return dropped

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

    def clear(self) -> None:
        """Forget the conversation and keep the document: the tail gets shorter."""
        self.undo(len(self.turns))

    def ask(
        self,
        question: str,
        sampling: Sampling | None = None,
        max_tokens: int = MAX_TOKENS,
        stop: Sequence[str] = (),
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generator[Progress | Smaller | Delta | TurnDone, None, None]:
        """Answer a question; ends with `TurnDone`. A cancelled answer is kept as far as it came.

        Raises KvchatError("too_long") if the question does not fit into the window; the session
        is then as it was.
        """
        ids = self._turn_ids(question)
        begun = Turn(question, "", "", tuple(ids), len(ids))
        yield from self._answer(begun, ids, sampling or Sampling(), max_tokens, stop, cancelled)

    def more(
        self,
        sampling: Sampling | None = None,
        max_tokens: int = MAX_TOKENS,
        stop: Sequence[str] = (),
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generator[Progress | Smaller | Delta | TurnDone, None, None]:
        """Go on with the last answer where a limit or the user cut it; `TurnDone` has all of it.

        Raises KvchatError("usage") if it ended by itself.
        """
        last = self.turns[-1] if self.turns else None
        if last is None or last.finish_reason == "stop" or not last.pending:
            raise KvchatError(
                "usage",
                "there is no answer to go on with" if last is None else "the answer has ended",
                "/retry  (answers again)" if last else "ask a question first",
            )
        ids = list(last.pending)
        yield from self._answer(last, ids, sampling or Sampling(), max_tokens, stop, cancelled)

    def _answer(
        self,
        begun: Turn,
        ids: list[int],
        sampling: Sampling,
        max_tokens: int,
        stop: Sequence[str],
        cancelled: Callable[[], bool],
    ) -> Generator[Progress | Smaller | Delta | TurnDone, None, None]:
        """Feed `ids`, then write: the answer of a new turn, or more of the last one's."""
        started = perf_counter()
        before, cache, earlier = self.cache.position, self.cache, begun.tokens
        room = self.limit - before - len(ids)
        if room < 1:
            raise self._window_full(len(ids))
        self._asked += 1
        asked = self._asked
        try:
            reading = self.engine.extend(self.cache, ids)
            logits = yield from self._until_cancelled(reading, cancelled)
            if logits is None:  # nothing of the question is in the cache
                seconds = perf_counter() - started
                yield TurnDone(begun.answer, "cancelled", len(ids), 0, seconds, 0.0)
                return
            stops = tuple(filter(None, (*self.dialogue.form.stop, *stop)))
            answer = Answer(TextStream(self.dialogue.tokenizer), stops)
            for token in earlier:  # text can depend on the tokens before it
                answer.push(token, is_end=False)
            shown = len(begun.answer)
            tokens = self.engine.decode(self.cache, logits, sampling)
            first = last = started
            reason = ""
            for token in tokens:
                last = perf_counter()
                first = last if len(answer.tokens) == len(earlier) else first
                answer.push(token, is_end=token in self.ends)
                count = len(answer.tokens) - len(earlier)
                if text := answer.text[shown:]:
                    shown = len(answer.text)
                    yield Delta(text, count)
                if reason := self._finished(answer, count, room, max_tokens, cancelled):
                    break
            answer.flush()
            if text := answer.text[shown:]:
                yield Delta(text, count)
        except BaseException:  # nobody waited for the end: the question was not asked
            if self._asked == asked and self.cache is cache:
                self._rewind(before)
            raise
        self._record(begun, before + len(ids) - len(earlier), answer, reason)
        yield TurnDone(answer.text, reason, len(ids), count, first - started, last - first)

    def memory(self) -> Memory:
        """Exact bytes of the cache."""
        return self.cache.memory()

    def full_bytes(self) -> int:
        """Bytes that the tokens seen would hold uncompressed."""
        return self.cache.position * self.engine.kv_bytes_per_token

    def _turn_ids(self, question: str) -> list[int]:
        if not self.turns:
            return self.dialogue.first(question)
        ids = self.dialogue.following(question)
        pending = list(self.turns[-1].pending)
        if not pending or pending[0] not in self.ends:
            return pending + ids
        # The end token that was sampled is the template's own, or stands in its place; what the
        # template writes before its own (a space, in some) was not sampled.
        end = next((i for i, token in enumerate(ids) if token in self.ends), None)
        if end is None or self.dialogue.tokenizer.decode(ids[:end]).strip():
            return pending + ids
        return ids[end:]

    def _turns_in(self, dialogue: Dialogue) -> list[Turn]:
        """The turns in another form: what opens the first one can differ, the rest stays."""
        if dialogue is self.dialogue or not self.turns:
            return self.turns
        first, *rest = self.turns
        ids = dialogue.first(first.question)
        changed = replace(first, ids=(*ids, *first.ids[first.asked :]), asked=len(ids))
        return [changed, *rest]

    def _window_full(self, needed: int) -> KvchatError:
        used = self.cache.position
        ways = ["a shorter question or document"]
        if self.turns:
            ways = ["/undo  (forgets the last turn)", "/clear  (keeps only the document)"]
        return KvchatError(
            "too_long",
            f"the question needs {needed:,} tokens and one for the answer; of the window's "
            f"{self.limit:,} tokens {used:,} are used",
            *ways,
            needed=used + needed,
            limit=self.limit,
        )

    def _finished(
        self,
        answer: Answer,
        count: int,
        room: int,
        max_tokens: int,
        cancelled: Callable[[], bool],
    ) -> str:
        """Why the answer ends here, `count` tokens after the last stop, or an empty string."""
        if answer.stopped or answer.tokens[-1] in self.ends:
            return "stop"
        if cancelled():
            return "cancelled"
        if count >= min(room, max_tokens):
            return "window" if count >= room else "length"
        return ""

    def _record(self, begun: Turn, begin: int, answer: Answer, reason: str) -> None:
        """Note the end of a turn whose answer began at position `begin`."""
        if answer.stopped:  # what made the stop string is no part of the conversation
            self._rewind(begin + answer.whole_tokens)
        fed = self.cache.position - begin
        turn = replace(
            begun,
            answer=answer.text,
            finish_reason=reason,
            ids=(*begun.ids[: begun.asked], *answer.tokens[:fed]),
            pending=() if answer.stopped else tuple(answer.tokens[fed:]),
        )
        if self.turns and self.turns[-1] is begun:
            self.turns = self.turns[:-1]
        self.turns = [*self.turns, turn]
        self._fold()

    @staticmethod
    def _until_cancelled(
        reading: Generator[Progress | Smaller, None, Tensor], cancelled: Callable[[], bool]
    ) -> Generator[Progress | Smaller, None, Tensor | None]:
        while True:
            try:
                progress = next(reading)
            except StopIteration as stop:
                return stop.value
            if cancelled():
                reading.close()
                return None
            yield progress
