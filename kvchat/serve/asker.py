"""One answer while it is written: its tokens, its text, and what ends it."""

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

from torch import Tensor

from kvchat.engine.answering import fresh_answer
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.decode.repetition import Repetition
from kvchat.engine.decode.sampler import Constraint, Sampler
from kvchat.engine.decode.sampling import Leaning, Sampling
from kvchat.engine.engine import Engine
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.stop_strings import Answer
from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.serve.citing import Cited, Cites


@dataclass(frozen=True)
class Wanted:
    """An answer that is wanted: `ids` are fed behind a cache, then at most `max_tokens` tokens are
    drawn. `logprobs`: how many likely tokens are wanted beside each; None: not even its own."""

    ids: Sequence[int]
    sampling: Sampling
    max_tokens: int
    ends: frozenset[int]
    stop: tuple[str, ...] = ()
    thinks: bool | None = None
    logprobs: int | None = None
    constraint: Constraint | None = None
    cites: Cites | None = None
    leaning: Leaning | None = None


@dataclass(frozen=True)
class Likely:
    """A token with the logarithm of its probability, and the likeliest in its place."""

    token: int
    logprob: float
    others: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What new tokens have brought: text of the answer, text of the thought, tokens."""

    text: str = ""
    thought: str = ""
    likely: tuple[Likely, ...] = ()


@dataclass(frozen=True)
class Ended:
    """The end of an answer; `reason` as in `TurnDone`, seconds from its arrival and of decoding.

    `weights [N]`: how much it attends to the document's tokens, where that is wanted.
    """

    reason: str
    tokens: int
    reasoning_tokens: int
    waited: float
    decoding: float
    weights: Sequence[float] = ()


@dataclass(frozen=True)
class Failed:
    """No (more of an) answer."""

    error: Exception


Event = Piece | Ended | Failed


@dataclass
class Asker:
    """Who waits for an answer. `tell` takes its events, from the engine's thread.

    `open` gives the cache of what stands before the question; it is asked for when the answer's
    turn has come. `planned` are the bytes that question and answer may take.
    """

    wanted: Wanted
    open: Callable[[], KVCache]
    dialogue: Dialogue
    tokenizer: Tokenizer
    tell: Callable[[Event], None]
    planned: int = 0
    gone: threading.Event = field(default_factory=threading.Event)
    since: float = field(default_factory=perf_counter)
    cache: KVCache | None = None

    def begin(self, engine: Engine) -> None:
        """Have a cache, to which the question is fed; `take` the logits after it."""
        self.cache = self.open()
        self._answer: Answer = fresh_answer(self.dialogue, self.tokenizer, self.wanted.thinks)
        self._answer.stops = tuple(filter(None, (*self.dialogue.form.stop, *self.wanted.stop)))
        wanted = self.wanted
        given = wanted.constraint, wanted.leaning
        self._sampler = Sampler(wanted.sampling, engine.device, (), *given)
        self._sampler.waits = engine.device.type == "cpu"
        self._circles = Repetition()
        self._told = self._shown = self.count = 0
        self._likely: list[Likely] = []
        self._first = 0.0
        self._cited: Cited | None = None
        self.ended: Ended | None = None
        if (cites := self.wanted.cites) is not None:
            self._cited = Cited(engine, self.cache, self.wanted.ids, cites)

    def take(self, logits: Tensor) -> int | None:
        """The next token by `logits [vocab]`; None if the answer has ended: then it is to
        `finish`."""
        token, wanted = self._sampler.draw(logits), self.wanted
        self.count += 1
        self._first = self._first or perf_counter()
        if wanted.logprobs is not None:
            self._likely.append(likely(logits, token, wanted.logprobs))
        answer = self._answer
        if self._cited is not None:
            self._cited.push(token, self.count > 1 and self.count - 1 <= answer.thought_tokens)
        answer.push(token, is_end=token in wanted.ends)
        reason = ""
        if answer.stopped or token in wanted.ends or self._sampler.is_complete:
            reason = "stop"
        elif wanted.constraint is None and self._circles.push(token):
            reason = "repetition"
        elif self.count >= wanted.max_tokens:
            reason = "length"
        if reason:
            answer.flush()
        self._say()
        if not reason:
            return token
        now = perf_counter()
        waited, decoding = self._first - self.since, now - self._first
        self.ended = Ended(reason, self.count, answer.thought_tokens, waited, decoding)
        return None

    def finish(self) -> Generator[None, None, None]:
        """Tell the end, once it is known where in the document the answer is from; in pieces."""
        assert self.ended is not None
        if self._cited is not None:
            weights = yield from self._cited.weights()
            self.ended = replace(self.ended, weights=weights.tolist())
        self.tell(self.ended)

    def _say(self) -> None:
        answer = self._answer
        thought, text = answer.thought[self._told :], answer.text[self._shown :]
        if thought or text or self._likely:
            self._told, self._shown = len(answer.thought), len(answer.text)
            self.tell(Piece(text, thought, tuple(self._likely)))
            self._likely = []

    @property
    def held(self) -> int:
        """Bytes that question and answer hold beside what is shared."""
        layers = self.cache.walked if self.cache is not None else ()
        return sum(layer.tail.memory().total for layer in layers)


def likely(logits: Tensor, token: int, others: int) -> Likely:
    """A token of `logits [vocab]` and the likeliest ones, by the model's own distribution."""
    logs = logits.float().log_softmax(0)
    best = logs.topk(others) if others else None
    pairs = () if best is None else zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return Likely(token, float(logs[token]), tuple(pairs))
