"""`Session`: one document, many questions. Text in, events out; knows nothing of the terminal."""

from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import accumulate
from time import perf_counter

from torch import Tensor

from kvchat.engine.cache.layer import KVCache
from kvchat.engine.cache.segment import Memory
from kvchat.engine.compaction import folding, watch
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.engine import Engine
from kvchat.engine.events import Delta, Progress, Smaller, Thought, Turn, TurnDone, drain
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.needs import Kind
from kvchat.engine.prefill.archive_writer import Archiving
from kvchat.engine.prefill.observation import Observation
from kvchat.engine.prefill.prefill import Compression, Prefill
from kvchat.engine.prefill.replay_texts import replays_of
from kvchat.engine.selection import can_choose, is_asked
from kvchat.engine.sizes import MAX_TOKENS, reserve_of
from kvchat.engine.text.chat_template import Dialogue, common
from kvchat.engine.text.stop_strings import Answer
from kvchat.engine.text.thoughts import Splitter
from kvchat.engine.text.tokenizer import TextStream
from kvchat.errors import KvchatError

Work = Generator[Progress | Smaller, None, None]
TurnEvents = Generator[Progress | Smaller | Thought | Delta | TurnDone, None, None]


class Session:
    """A document that is prefilled once, and the turns after it.

    First `prefill` a document (or `adopt` a cache of it), then `ask`; `recompress` does it again
    with another method or document, `choose` selects anew from a full copy without a prefill, and
    `undo` takes turns back. Nothing is rendered or tokenised twice: turns own their tokens, and the
    last sampled token is *pending*, to be fed with the next turn.

    With a `tail_budget` the turns hold at most so many entries per KV head, see `fold`. With
    `by_question`, and an archive beside the cache, every question attends to all of the document
    and then chooses what its answer is decoded over.
    """

    def __init__(
        self,
        engine: Engine,
        dialogue: Dialogue,
        end_tokens: Sequence[int] = (),
        limit: int = 0,
        tail_budget: int = 0,
        by_question: bool = False,
    ):
        self.engine, self.dialogue = engine, dialogue
        self.limit = limit or engine.config.context_limit
        self.ends = dialogue.end_tokens | set(engine.config.end_tokens) | set(end_tokens)
        self.tail_budget, self.by_question = tail_budget, by_question
        self.document: list[int] = []
        self.turns: list[Turn] = []
        self.method: Method | None = None  # that compresses old turns
        self.chooser: Method | None = None  # that chose what is kept of the document
        self.select_seconds = 0.0  # that compressing took at the last prefill
        self.question_seconds: float | None = None  # that choosing for the last question took
        self._cache: KVCache | None = None
        self._asked = 0  # questions begun: an abandoned one must not undo a later one

    @property
    def cache(self) -> KVCache:
        """What is kept of document and turns; empty before the first prefill."""
        if self._cache is None:
            self._cache = self.engine.empty_cache()
        return self._cache

    def memory(self) -> Memory:
        """Exact bytes of the cache."""
        return self.cache.memory()

    def full_bytes(self) -> int:
        """Bytes that the tokens seen would hold uncompressed."""
        return self.engine.kv_bytes(self.cache.position)

    # The document

    def read(
        self,
        ids: Sequence[int],
        compressions: Sequence[Compression],
        questions: Sequence[str] = (),
        archiving: Archiving | None = None,
    ) -> Generator[Progress | Smaller, None, Prefill]:
        """Prefill a document once into one cache per compression; `questions` are its probes.

        `archiving` is given all entries, and the caches get what it makes of them. The session
        itself does not change: `adopt` one of the caches to talk over it. Raises
        KvchatError("too_long").
        """
        require_fit(len(ids), self.limit)
        probes = [self.dialogue.first(question) for question in questions]
        kinds = frozenset[Kind]().union(*(c.method.needs.kinds for c in compressions))
        replays = replays_of(self.dialogue, ids, kinds)
        with archiving or nullcontext():
            work = self.engine.prefill(ids, compressions, probes, replays, archiving)
            return (yield from work)

    def prefill(
        self,
        ids: Sequence[int],
        method: Method,
        folds: Method | None = None,
        archiving: Archiving | None = None,
        questions: Sequence[str] = (),
    ) -> Work:
        """Prefill `ids` (of `Dialogue.document`) with a method and begin a conversation about them.

        Turns are compressed by the same method, or by `folds`. With `questions` the method scores
        entries by them and not by the document's end. If the consumer stops in between, the
        session is as it was. Raises KvchatError("too_long").
        """
        self.require_window(method)
        if not ids:
            return self.adopt(self.engine.empty_cache(), ids, folds or method)
        compression = Compression(method, tuple(range(len(questions))))
        reading = yield from self.read(ids, [compression], questions, archiving)
        self.adopt(reading.caches[0], ids, folds or method)
        self.select_seconds, self.chooser = reading.select_seconds, method

    def adopt(self, cache: KVCache, ids: Sequence[int], folds: Method | None = None) -> None:
        """Talk over this cache of the document `ids` from now on; earlier turns are forgotten."""
        assert cache.position == len(ids), f"{cache.position} tokens prefilled of {len(ids)}"
        self._cache, self.document, self.turns, self.method = cache, list(ids), [], folds
        self.chooser = None
        self._watch(cache, folds)

    def recompress(
        self,
        method: Method,
        questions: Sequence[str] = (),
        document: Sequence[int] | None = None,
        dialogue: Dialogue | None = None,
        ready: KVCache | None = None,
        archiving: Archiving | None = None,
        folds: Method | None = None,
    ) -> Work:
        """Prefill document and turns again, with another method or another document.

        `dialogue` replaces the form of the conversation; `ready` is a cache of the document, which
        then needs no prefill. The rest is as for `prefill`. If the consumer stops in between, the
        session is as it was. Raises KvchatError("too_long").
        """
        folds = folds or method
        if self.tail_budget:
            folding(folds, self.tail_budget)  # refused now if it cannot
        ids = self.document if document is None else list(document)
        dialogue = dialogue or self.dialogue
        turns = self._turns_in(dialogue)
        talk = [i for turn in turns for i in turn.ids]
        if document is not None:
            require_fit(len(ids) + len(talk), self.limit, "the document with the conversation")
        cache, select = ready or self.engine.empty_cache(), 0.0
        if ids and not ready:
            compression = Compression(method, tuple(range(len(questions))))
            reading = yield from self.read(ids, [compression], questions, archiving)
            cache, select = reading.caches[0], reading.select_seconds
        self._watch(cache, folds, len(ids))
        if talk:
            yield from self.engine.extend(cache, talk)
        self._cache, self.document, self.turns = cache, ids, turns
        self.dialogue, self.select_seconds, self.method = dialogue, select, folds
        self.chooser = method
        self._fold()

    def choose(self, method: Method, question: str = "") -> bool:
        """Choose again what is kept of the document, with another method or budget, or for a
        question in view; turns stay as they are.

        Needs an archive that holds all that the method wants to be shown: without one it is False,
        and nothing has changed.
        """
        self.require_window(method)
        if not self.document or not can_choose(self.cache, method):
            return False
        if question:
            ids = (self.dialogue.following if self.turns else self.dialogue.first)(question)
            before = self.cache.position
            _, self.select_seconds = drain(self.engine.extend_choosing(self.cache, ids, method))
            self._rewind(before)
        else:
            self.select_seconds = self.engine.choose(self.cache, method)
        self.chooser = method
        return True

    def require_window(self, method: Method) -> None:
        """Raise KvchatError("usage") where compressed turns would slide into the document."""
        if self.tail_budget and method.retrieves:
            folding(method, self.tail_budget)

    # The turns

    def ask(
        self,
        question: str,
        sampling: Sampling | None = None,
        max_tokens: int = MAX_TOKENS,
        stop: Sequence[str] = (),
        cancelled: Callable[[], bool] = lambda: False,
        thinks: bool | None = None,
    ) -> TurnEvents:
        """Answer a question; ends with `TurnDone`. A cancelled answer is kept as far as it came.

        The thought of the turn before goes now, if the template drops it. `thinks`: whether the
        model is to think before it answers; None: as the template has it. Raises
        KvchatError("too_long") if the question does not fit into the window; the session is then
        as it was.
        """
        turns, thinks = self._past(self.turns), self.dialogue.meant(thinks)
        ids = self._turn_ids(question, turns, thinks)
        self._room(sum(len(turn.ids) for turn in turns) + len(self.document), len(ids))
        self._hold(turns)
        begun = Turn(question, "", "", tuple(ids), len(ids), thinks=thinks)
        yield from self._answer(begun, ids, sampling or Sampling(), max_tokens, stop, cancelled)

    def more(
        self,
        sampling: Sampling | None = None,
        max_tokens: int = MAX_TOKENS,
        stop: Sequence[str] = (),
        cancelled: Callable[[], bool] = lambda: False,
    ) -> TurnEvents:
        """Go on with the last answer where a limit or the user cut it; `TurnDone` has all of it.

        Raises KvchatError("usage") if it ended by itself.
        """
        last = self.turns[-1].whole or self.turns[-1] if self.turns else None
        if last is None or last.finish_reason == "stop" or not last.pending:
            raise KvchatError(
                "usage",
                "there is no answer to go on with" if last is None else "the answer has ended",
                "/retry  (answers again)" if last else "ask a question first",
            )
        self._hold([*self.turns[:-1], last])  # a question that was given up has dropped its thought
        ids = list(last.pending)
        yield from self._answer(last, ids, sampling or Sampling(), max_tokens, stop, cancelled)

    def restore(self, turns: Sequence[Turn]) -> Work:
        """Feed turns of an earlier conversation after those that are there.

        If the consumer stops in between, the session is as it was.
        """
        there, every = len(self.turns), [*self.turns, *turns]
        every = [*self._past(every[:-1]), *every[-1:]]
        if ids := [i for turn in every[there:] for i in turn.ids]:
            talk = sum(len(turn.ids) for turn in every)
            require_fit(len(self.document) + talk, self.limit, "the saved conversation")
            self._hold(every[:there])
            yield from self.engine.extend(self.cache, ids)
        self.turns = every
        self._fold()

    def undo(self, count: int = 1) -> list[Turn]:
        """Forget the last `count` turns and return them.

        Nothing is prefilled again, unless a turn that stays was compressed together with one that
        goes: then the turns that stay are. An answer that can go on then has the entries again that
        its question had chosen.
        """
        assert 0 <= count <= len(self.turns), f"cannot undo {count} of {len(self.turns)} turns"
        kept, dropped = self.turns[: len(self.turns) - count], self.turns[len(self.turns) - count :]
        last = kept[-1] if dropped and kept else None
        if last is not None and last.finish_reason != "stop":  # it can go on from its thought
            last = last.whole or last
            kept[-1:] = [last]
        self._hold(kept)
        for layer in self.cache.walked:
            layer.tail.trim()
        if last is not None and last.finish_reason != "stop" and (method := self._choosing()):
            start = self.cache.position - len(last.ids)
            if start >= self.cache.frozen:
                self._rewind(start)
                drain(self.engine.extend_choosing(self.cache, last.ids[: last.asked], method))
                if written := last.ids[last.asked :]:
                    drain(self.engine.extend(self.cache, written))
        return dropped

    def clear(self) -> None:
        """Forget the conversation and keep the document: the tail gets shorter."""
        self.undo(len(self.turns))

    @property
    def compacted(self) -> int:
        """Tokens of the conversation whose turns are compressed."""
        return self.cache.frozen - len(self.document)

    # How a turn runs

    def _answer(
        self,
        begun: Turn,
        ids: list[int],
        sampling: Sampling,
        max_tokens: int,
        stop: Sequence[str],
        cancelled: Callable[[], bool],
    ) -> TurnEvents:
        """Feed `ids`, then decode: the answer of a new turn, or more of the last one's."""
        started = perf_counter()
        cache = self.cache
        before, earlier = cache.position, begun.tokens
        chosen = [list(layer.segments) for layer in cache.layers]
        room = self._room(before, len(ids))
        self._asked += 1
        asked = self._asked
        try:
            logits = yield from _until_cancelled(self._fed(begun, ids), cancelled)
            if logits is None:  # nothing of the question stays
                self._rewind(before)
                seconds = perf_counter() - started
                yield TurnDone(begun.answer, "cancelled", len(ids), 0, seconds, 0.0)
                return
            answer = self._begun(begun, stop)
            shown, told, most = len(begun.answer), len(answer.thought), min(room, max_tokens)
            first = last = started
            count, reason = 0, ""
            drawn = [token for turn in self.turns for token in turn.tokens]
            for token in self.engine.decode(cache, logits, sampling, drawn):
                last = perf_counter()
                count += 1
                first = last if count == 1 else first
                answer.push(token, is_end=token in self.ends)
                if text := answer.thought[told:]:
                    told = len(answer.thought)
                    yield Thought(text, count)
                if text := answer.text[shown:]:
                    shown = len(answer.text)
                    yield Delta(text, count)
                if answer.stopped or token in self.ends:
                    reason = "stop"
                elif cancelled():
                    reason = "cancelled"
                elif count >= most:
                    reason = "window" if count >= room else "length"
                if reason:
                    break
            answer.flush()
            if text := answer.thought[told:]:
                yield Thought(text, count)
            if text := answer.text[shown:]:
                yield Delta(text, count)
        except BaseException:  # nobody waited for the end: the question was not asked
            if self._asked == asked and self.cache is cache:
                self._rewind(before)
                for layer, segments in zip(cache.layers, chosen, strict=True):
                    layer.segments = segments
            raise
        self._record(begun, before + len(ids) - len(earlier), answer, reason)
        took = first - started, last - first
        thought = answer.reasoning, answer.thought_tokens
        yield TurnDone(answer.text, reason, len(ids), count, *took, *thought)

    def _begun(self, turn: Turn, stop: Sequence[str]) -> Answer:
        """What comes of a turn's tokens so far, and of those that will come."""
        form, tokenizer = self.dialogue.form, self.dialogue.tokenizer
        answer = Answer(TextStream(tokenizer), ())
        if (thoughts := form.thoughts) is not None:
            answer.splitter = Splitter(
                thoughts, thoughts.is_open(self.dialogue.header(turn.thinks))
            )
            marks = (
                (tokenizer.specials.get(mark), mark) for mark in (thoughts.open, thoughts.close)
            )
            answer.marks = {token: mark for token, mark in marks if token is not None}
        for token in turn.tokens:  # text can depend on the tokens before it
            answer.push(token, is_end=False)
        answer.stops = tuple(filter(None, (*form.stop, *stop)))  # of what comes now
        return answer

    def _fed(self, begun: Turn, ids: list[int]) -> Generator[Progress | Smaller, None, Tensor]:
        """Append `ids` to the cache; a new question may choose its entries. The last logits."""
        self.question_seconds = None
        method = None if begun.finish_reason else self._choosing()
        if method is None:
            return (yield from self.engine.extend(self.cache, ids))
        work = self.engine.extend_choosing(self.cache, ids, method)
        logits, self.question_seconds = yield from work
        return logits

    def _choosing(self) -> Method | None:
        """What chooses entries for a question, if questions choose here."""
        method = self.chooser if self.by_question else None
        able = method is not None and is_asked(method) and can_choose(self.cache, method)
        return method if able else None

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

    def _record(self, begun: Turn, begin: int, answer: Answer, reason: str) -> None:
        """Note the end of a turn whose answer began at position `begin`."""
        if answer.stopped:  # what made the stop string is no part of the conversation
            turns = self.turns[:-1] if self.turns and self.turns[-1] is begun else self.turns
            whole = [*begun.ids[: begun.asked], *answer.tokens[: answer.whole_tokens]]
            talk = [*(token for turn in turns for token in turn.ids), *whole]
            if not self._rewind(begin + answer.whole_tokens):  # it had been compressed
                drain(self.engine.extend(self.cache, talk))
        fed = self.cache.position - begin
        turn = replace(
            begun,
            answer=answer.text,
            finish_reason=reason,
            ids=(*begun.ids[: begun.asked], *answer.tokens[:fed]),
            pending=() if answer.stopped else tuple(answer.tokens[fed:]),
            reasoning=answer.reasoning,
            thought=answer.thought_tokens,
        )
        if self.turns and self.turns[-1] is begun:
            self.turns = self.turns[:-1]
        self.turns = [*self.turns, turn]
        self._fold()

    def _turns_in(self, dialogue: Dialogue) -> list[Turn]:
        """The turns in another form: what opens the first one can differ, the rest stays."""
        if dialogue is self.dialogue or not self.turns:
            return self.turns
        first, *rest = self.turns
        changed = first.whole or first
        ids = dialogue.first(changed.question, changed.thinks)
        changed = replace(changed, ids=(*ids, *changed.ids[changed.asked :]), asked=len(ids))
        return [dialogue.past(changed, is_first=True) if first.whole else changed, *rest]

    def _past(self, turns: Sequence[Turn]) -> list[Turn]:
        """Turns as they are once others follow: without thoughts, if the template drops them."""
        return [self.dialogue.past(turn, number == 0) for number, turn in enumerate(turns)]

    def _hold(self, turns: list[Turn]) -> None:
        """Let the cache hold these turns; what it has of them already is not fed again."""
        held, wanted = ([i for turn in each for i in turn.ids] for each in (self.turns, turns))
        same = common(held, wanted)
        if same < max(len(held), len(wanted)):
            if not self._rewind(len(self.document) + same):
                same = 0
            if wanted[same:]:
                drain(self.engine.extend(self.cache, wanted[same:]))
        self.turns = turns

    def _rewind(self, position: int) -> bool:
        """Forget the tokens from `position` on; False if all of the conversation had to go."""
        if position >= self.cache.frozen:
            self.cache.truncate(position)
            for layer in self.cache.layers:
                if isinstance(layer.observer, Observation):
                    layer.observer.forget(position)
            return True
        self.cache.thaw(len(self.document))
        self._watch(self.cache, self.method)
        return False

    def _watch(self, cache: KVCache, folds: Method | None, since: int | None = None) -> None:
        """Let a cache gather what compressing its turns will need."""
        if self.tail_budget and folds is not None:
            start = len(self.document) if since is None else since
            watch(cache, folding(folds, self.tail_budget), start)

    def _fold(self) -> None:
        """Compress the oldest turns if the live ones exceed half of the tail budget.

        Whole turns are compressed, never the newest one.
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

    def _room(self, used: int, needed: int) -> int:
        """Tokens for an answer after a question that needs some. Raises KvchatError("too_long")."""
        room = self.limit - used - needed
        if room < 1:
            raise self._window_full(used, needed)
        return room

    def _window_full(self, used: int, needed: int) -> KvchatError:
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


def _until_cancelled(
    work: Generator[Progress | Smaller, None, Tensor], cancelled: Callable[[], bool]
) -> Generator[Progress | Smaller, None, Tensor | None]:
    while True:
        try:
            progress = next(work)
        except StopIteration as stop:
            logits: Tensor = stop.value
            return logits
        if cancelled():
            work.close()
            return None
        yield progress
