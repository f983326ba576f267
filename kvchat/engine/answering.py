"""How one answer comes about: its question fed, tokens decoded until something ends them, the turn
written down."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TypeVar

from torch import Tensor

from kvchat.engine.context_window import ids_of
from kvchat.engine.conversation import Conversation
from kvchat.engine.decode.repetition import Repetition
from kvchat.engine.decode.sampler import Constraint
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import (
    Delta,
    Forgotten,
    Progress,
    Smaller,
    Thought,
    Turn,
    TurnDone,
    Unending,
    drain,
)
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.stop_strings import Answer
from kvchat.engine.text.thoughts import Splitter
from kvchat.engine.text.tokenizer import TextStream, Tokenizer

SENTENCE_ENDS = ".!?;。！？"
R = TypeVar("R")
Feeding = Generator[Progress | Smaller, None, R]
TurnEvent = Progress | Smaller | Forgotten | Unending | Thought | Delta | TurnDone
TurnEvents = Generator[TurnEvent, None, None]


@dataclass(frozen=True)
class Wanted:
    """How tokens are drawn, and what ends them beside the model."""

    sampling: Sampling
    max_tokens: int
    stop: Sequence[str]
    cancelled: Callable[[], bool]
    constraint: Constraint | None = None  # the form that the answer has to have


class Answering(Conversation):
    """A conversation that answers."""

    _asked = 0  # questions begun: an abandoned one must not undo a later one

    def attended(self) -> Tensor | None:
        """How much the last turn attends to each of the document's tokens, `[N]` fp32; see
        `attribution`. None without a document or an answer."""
        turn = self.turns[-1] if self.turns else None
        if turn is None or not self.document or len(turn.tokens) <= turn.thought:
            return None
        drain(self._holding(self.turns))
        begin, ids = self.cache.position - len(turn.ids), [*turn.ids, *turn.pending]
        thought = range(turn.asked, turn.asked + turn.thought)
        following = {
            begin + number: token for number, token in enumerate(ids[1:]) if number not in thought
        }
        layers, found = self.cache.layers, self._seen
        if not any(begin in each.slots and each.layer in layers for each in found):
            found = []
        return self.engine.attended(self.cache, turn.ids, following, self.document, found)

    def _fed(self, begun: Turn, ids: list[int]) -> Feeding[Tensor]:
        """Append `ids` to the cache. The last logits."""
        return self.engine.extend(self.cache, ids)

    def _answer(self, begun: Turn, ids: list[int], wanted: Wanted) -> TurnEvents:
        """Feed `ids`, then decode: the answer of a new turn, or more of the last one's."""
        with self.engine.recorded(self.cache) as self._seen:
            yield from self._written(begun, ids, wanted)

    def _written(self, begun: Turn, ids: list[int], wanted: Wanted) -> TurnEvents:
        started = perf_counter()
        cache, ends, cancelled = self.cache, self.ends, wanted.cancelled
        before, earlier = cache.position, begun.tokens
        chosen = [list(layer.segments) for layer in cache.layers]
        room = self._room(before, len(ids))
        self._asked += 1
        asked = self._asked
        try:
            logits = yield from until_cancelled(self._fed(begun, ids), cancelled)
            if logits is None:  # nothing of the question stays
                self._rewind(before)
                yield given_up(begun, len(ids), started)
                return
            answer = self._begun(begun, wanted.stop)
            shown, told = len(begun.answer), len(answer.thought)
            most = min(room, wanted.max_tokens)
            first = last = started
            count, reason, circles = 0, "", Repetition()
            drawn = [token for turn in self.all_turns for token in turn.tokens]
            form = wanted.constraint
            for token in self.engine.decode(cache, logits, wanted.sampling, drawn, form):
                last = perf_counter()
                count += 1
                first = last if count == 1 else first
                answer.push(token, is_end=token in ends)
                if text := answer.thought[told:]:
                    told = len(answer.thought)
                    yield Thought(text, count)
                if text := answer.text[shown:]:
                    shown = len(answer.text)
                    yield Delta(text, count)
                if answer.stopped or token in ends or (form is not None and form.is_complete):
                    reason = "stop"
                elif cancelled():
                    reason = "cancelled"
                elif form is None and circles.push(token):
                    reason = "repetition"
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
        if reason == "repetition":  # what was said once stays, the last token of it pending
            answer, kept = self._once(begun, wanted.stop, answer.tokens[len(earlier) :], circles)
            self._rewind(before + len(ids) + kept - 1)
        self._record(begun, before + len(ids) - len(earlier), answer, reason)
        took = first - started, last - first
        thought = answer.reasoning, answer.thought_tokens
        yield TurnDone(answer.text, reason, len(ids), count, *took, *thought)

    def _begun(self, turn: Turn, stop: Sequence[str]) -> Answer:
        """What comes of a turn's tokens so far, and of those that will come."""
        answer = fresh_answer(self.dialogue, self.dialogue.tokenizer, turn.thinks)
        for token in turn.tokens:  # text can depend on the tokens before it
            answer.push(token, is_end=False)
        answer.stops = tuple(filter(None, (*self.dialogue.form.stop, *stop)))  # of what comes now
        return answer

    def _once(
        self, begun: Turn, stop: Sequence[str], tokens: Sequence[int], circles: Repetition
    ) -> tuple[Answer, int]:
        """An answer of `tokens` without its repetition, and how many of them it has.

        Of the places where the stretch could be cut it is one behind a line or a sentence.
        """
        answer, found = self._begun(begun, stop), circles.kept
        ranks = {"\n": 2, **dict.fromkeys(SENTENCE_ENDS, 1)}
        best = 0
        for count, token in enumerate(tokens[: circles.kept + circles.period - 1], 1):
            answer.push(token, is_end=False)
            rank = ranks.get((answer.text or answer.thought).rstrip(" ")[-1:], 0)
            if count >= circles.kept and rank > best:
                best, found = rank, count
        answer = self._begun(begun, stop)
        for token in tokens[:found]:
            answer.push(token, is_end=False)
        answer.flush()
        return answer, found

    def _record(self, begun: Turn, begin: int, answer: Answer, reason: str) -> None:
        """Note the end of a turn whose answer began at position `begin`."""
        if answer.stopped:  # what made the stop string is no part of the conversation
            turns = self.turns[:-1] if self.turns and self.turns[-1] is begun else self.turns
            whole = [*begun.ids[: begun.asked], *answer.tokens[: answer.whole_tokens]]
            if not self._rewind(begin + answer.whole_tokens):  # it had been compressed
                drain(self.engine.extend(self.cache, [*ids_of(turns), *whole]))
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


def fresh_answer(dialogue: Dialogue, tokenizer: Tokenizer, thinks: bool | None) -> Answer:
    """An answer before its first token, whose thought is told from its text."""
    answer = Answer(TextStream(tokenizer), ())
    if (thoughts := dialogue.form.thoughts) is not None:
        answer.splitter = Splitter(thoughts, thoughts.is_open(dialogue.header(thinks)))
        marks = ((tokenizer.specials.get(mark), mark) for mark in (thoughts.open, thoughts.close))
        answer.marks = {token: mark for token, mark in marks if token is not None}
    return answer


def given_up(turn: Turn, tokens: int, started: float) -> TurnDone:
    """The end of a question that was cancelled before its answer began."""
    return TurnDone(turn.answer, "cancelled", tokens, 0, perf_counter() - started, 0.0)


def until_cancelled(work: Feeding[R], cancelled: Callable[[], bool]) -> Feeding[R | None]:
    """The value of `work`; None if it was cancelled before its end."""
    while True:
        try:
            progress = next(work)
        except StopIteration as stop:
            value: R = stop.value
            return value
        if cancelled():
            work.close()
            return None
        yield progress
