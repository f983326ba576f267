"""`Session`: one document, many questions. Text in, events out; knows nothing of the terminal."""

from collections.abc import Callable, Generator, Sequence
from time import perf_counter

from torch import Tensor

from kvchat.engine.answering import (
    Feeding,
    TurnEvent,
    TurnEvents,
    Wanted,
    given_up,
    until_cancelled,
)
from kvchat.engine.compaction import Level, levels_of
from kvchat.engine.context_window import tokens_of
from kvchat.engine.decode.sampler import Constraint
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.engine import Engine
from kvchat.engine.events import Forgotten, Turn, Unending, drain
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.cascade import Cascade
from kvchat.engine.reading import Reading
from kvchat.engine.selection import can_choose, is_asked
from kvchat.engine.sizes import MAX_TOKENS, reserve_of
from kvchat.engine.text.chat_template import Dialogue
from kvchat.errors import KvchatError


class Session(Reading):
    """A document that is prefilled once, and the turns after it.

    First `prefill` a document (or `adopt` a cache of it), then `ask`; `recompress` does it again
    with another method or document, `choose` selects anew from a full copy without a prefill, and
    `undo` takes turns back.

    With `by_question`, and an archive beside the cache, every question attends to all of the
    document and then chooses what its answer is decoded over.
    """

    def __init__(
        self,
        engine: Engine,
        dialogue: Dialogue,
        end_tokens: Sequence[int] = (),
        limit: int = 0,
        tail_budget: int = 0,
        by_question: bool = False,
        streams: bool = False,
        cascade: Cascade | None = None,
    ):
        super().__init__(engine, dialogue, end_tokens, limit, tail_budget, streams, cascade)
        self.by_question = by_question
        self.question_seconds: float | None = None  # that choosing for the last question took
        self.unending = False  # whether it was said that the chat goes on in a full window

    def ask(
        self,
        question: str,
        sampling: Sampling | None = None,
        max_tokens: int = MAX_TOKENS,
        stop: Sequence[str] = (),
        cancelled: Callable[[], bool] = lambda: False,
        thinks: bool | None = None,
        constraint: Constraint | None = None,
    ) -> TurnEvents:
        """Answer a question; ends with `TurnDone`. A cancelled answer is kept as far as it came.

        The thought of the turn before goes now, if the template drops it; so do the oldest turns,
        if the window has no room for question and answer beside them (`Forgotten`). `thinks`:
        whether the model is to think before it answers; None: as the template has it.
        `constraint`: the form that the answer has to have. Raises KvchatError("too_long") if the
        question does not fit into the window without any turns; the session is then as it was.
        """
        past, thinks = self._past(self.turns), self.dialogue.meant(thinks)
        answer = min(max_tokens, reserve_of(self.limit) // 2)
        needed = len(self._turn_ids(question, past, thinks)) + answer
        if self.cascade is not None:
            yield from self._unending(past, needed)
        turns = self._newest(past, needed)
        ids = self._turn_ids(question, turns, thinks)
        self._room(len(self.document) + tokens_of(turns), len(ids))
        begun = Turn(question, "", "", tuple(ids), len(ids), thinks=thinks)
        if (yield from self._left(past, turns, begun, cancelled)):
            wanted = Wanted(sampling or Sampling(), max_tokens, stop, cancelled, constraint)
            yield from self._answer(begun, ids, wanted)

    def more(
        self,
        sampling: Sampling | None = None,
        max_tokens: int = MAX_TOKENS,
        stop: Sequence[str] = (),
        cancelled: Callable[[], bool] = lambda: False,
    ) -> TurnEvents:
        """Go on with the last answer where a limit or the user cut it; `TurnDone` has all of it.

        The oldest turns go where the window is full. Raises KvchatError("usage") at once if it
        ended by itself.
        """
        last = self.turns[-1].whole or self.turns[-1] if self.turns else None
        if last is None or last.finish_reason == "stop" or not last.pending:
            raise KvchatError(
                "usage",
                "there is no answer to go on with" if last is None else "the answer has ended",
                "/retry  (answers again)" if last else "ask a question first",
            )
        return self._more(last, Wanted(sampling or Sampling(), max_tokens, stop, cancelled))

    def _more(self, last: Turn, wanted: Wanted) -> TurnEvents:
        every = [*self.turns[:-1], last]  # a question that was given up has dropped its thought
        ids = list(last.pending)
        answer = min(wanted.max_tokens, reserve_of(self.limit) // 2)
        if self.cascade is not None:
            yield from self._unending(every, len(ids) + answer)
        turns = self._newest(every, len(ids) + answer, least=1)
        self._room(len(self.document) + tokens_of(turns), len(ids))
        if (yield from self._left(every, turns, last, wanted.cancelled)):
            yield from self._answer(turns[-1], ids, wanted)

    def _unending(self, past: list[Turn], needed: int) -> TurnEvents:
        """Let the cascade make room for `needed` tokens; says once that it does."""
        drain(self._gathered(past, needed))
        if not self.unending and self.cache.position + needed > self.limit + self._saved:
            self.unending = True
            yield Unending(tokens_of(past), self.compacted, self.held)

    @property
    def document_saved(self) -> int:
        """Positions that the document takes less than it has tokens."""
        return self._saved

    @property
    def held(self) -> int:
        """Entries per KV head of the compressed turns."""
        return sum(level.entries for level in self.levels())

    def levels(self) -> list[Level]:
        """What is still seen of a conversation without end, the oldest first."""
        segments = self.cache.layers[0].since(len(self.document)) if self.cascade else []
        return [level for part in segments for level in levels_of(part, len(self.document))]

    def _left(
        self, past: list[Turn], turns: list[Turn], begun: Turn, cancelled: Callable[[], bool]
    ) -> Generator[TurnEvent, None, bool]:
        """Let the cache hold `turns`, which are left of `past`. False if that was cancelled: the
        session is then as it was, and the turn `begun` has ended."""
        gone, started = past[: len(past) - len(turns)], perf_counter()
        if not gone:
            drain(self._holding(turns))
            return True
        yield Forgotten(len(gone), tokens_of(gone))
        if (yield from until_cancelled(self._holding(turns), cancelled)) is None:
            yield given_up(begun, 0, started)
            return False
        self.forgotten += gone
        return True

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
        drain(self._holding(kept))
        self.cache.trim()
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
        self.forgotten = []

    def _fed(self, begun: Turn, ids: list[int]) -> Feeding[Tensor]:
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
