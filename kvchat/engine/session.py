"""`Session`: one document, many questions. Text in, events out; knows nothing of the terminal."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from time import perf_counter

from torch import Tensor

from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.engine import Engine
from kvchat.engine.events import Delta, Progress, Smaller, TurnDone, drain
from kvchat.engine.methods.base import Method
from kvchat.engine.reader import Reader
from kvchat.engine.selection import can_choose, is_asked
from kvchat.engine.sizes import MAX_TOKENS
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.stop_strings import Answer
from kvchat.engine.text.tokenizer import TextStream
from kvchat.engine.turn import Turn
from kvchat.errors import KvchatError


class Session(Reader):
    """A document read once, and many questions.

    The last sampled token is *pending*: it is fed with the next turn. Nothing is rendered or
    tokenised twice. With `by_question`, and an archive beside the cache, every question attends to
    all of the document and then chooses what its answer is written over.
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
        super().__init__(engine, dialogue, limit, tail_budget)
        self.by_question = by_question
        self.ends = dialogue.end_tokens | set(engine.config.end_tokens) | set(end_tokens)
        self.question_seconds: float | None = None  # that choosing for the last question took
        self._asked = 0  # questions begun: an abandoned one must not undo a later one

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

    def undo(self, count: int = 1) -> list[Turn]:
        """Forget the last `count` turns and return them; see `Conversation.undo`.

        An answer that can go on then has the entries again that its question had chosen.
        """
        dropped = super().undo(count)
        last = self.turns[-1] if dropped and self.turns else None
        if last is not None and last.finish_reason != "stop" and (method := self._choosing()):
            start = self.cache.position - len(last.ids)
            if start >= self.cache.frozen:
                self._rewind(start)
                drain(self.engine.extend_choosing(self.cache, last.ids[: last.asked], method))
                if written := last.ids[last.asked :]:
                    drain(self.engine.extend(self.cache, written))
        return dropped

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
        chosen = [list(layer.segments) for layer in cache.layers]
        room = self.limit - before - len(ids)
        if room < 1:
            raise self._window_full(len(ids))
        self._asked += 1
        asked = self._asked
        try:
            logits = yield from self._until_cancelled(self._fed(begun, ids), cancelled)
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
                for layer, segments in zip(cache.layers, chosen, strict=True):
                    layer.segments = segments
            raise
        self._record(begun, before + len(ids) - len(earlier), answer, reason)
        yield TurnDone(answer.text, reason, len(ids), count, first - started, last - first)

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
