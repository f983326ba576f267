"""`Session`: one document, many questions. Text in, events out; knows nothing of the terminal."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from torch import Tensor

from kvchat.engine.cache.layer import KVCache
from kvchat.engine.cache.memory import Memory
from kvchat.engine.dialogue import Dialogue
from kvchat.engine.engine import Engine
from kvchat.engine.events import Delta, Progress, TurnDone
from kvchat.engine.methods.base import Method
from kvchat.engine.prefill import Compression, Reading
from kvchat.engine.sampling import Sampling
from kvchat.engine.tokenizer import TextStream
from kvchat.errors import KvchatError

MAX_TOKENS = 2048
ANSWER_RESERVE = 512


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str
    finish_reason: str


def require_fit(tokens: int, limit: int, name: str = "the document") -> None:
    """Raise KvchatError("too_long") unless `tokens` leave room for a question in the window."""
    reserve = min(ANSWER_RESERVE, limit // 4)
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
    tokenised twice.
    """

    def __init__(
        self, engine: Engine, dialogue: Dialogue, end_tokens: Sequence[int] = (), limit: int = 0
    ):
        self.engine = engine
        self.dialogue = dialogue
        self.ends = dialogue.end_tokens | set(engine.config.end_tokens) | set(end_tokens)
        self.limit = limit or engine.config.context_limit
        self.cache = engine.empty_cache()
        self.select_seconds = 0.0  # that compressing took at the last reading
        self.document: list[int] = []
        self.turns: list[Turn] = []
        self._talk: list[int] = []  # ids in the tail: all turns so far, but the pending token
        self._pending: list[int] = []
        self._asked = 0  # questions begun: an abandoned one must not undo a later one

    def read(
        self,
        ids: Sequence[int],
        compressions: Sequence[Compression],
        questions: Sequence[str] = (),
    ) -> Generator[Progress, None, Reading]:
        """Read a document once into one cache per compression; `questions` are its probes.

        The session itself does not change: `adopt` one of the caches to talk over it.
        """
        require_fit(len(ids), self.limit)
        probes = [self.dialogue.first(question) for question in questions]
        return (yield from self.engine.prefill(ids, compressions, probes))

    def open(self, ids: Sequence[int], method: Method) -> Generator[Progress, None, None]:
        """Read `ids` (of `Dialogue.document`) with a method and begin a conversation about them.

        If the consumer stops in between, the session is as it was.
        """
        if not ids:
            return self.adopt(self.engine.empty_cache(), ids)
        reading = yield from self.read(ids, [Compression(method)])
        self.select_seconds = reading.select_seconds
        self.adopt(reading.caches[0], ids)

    def adopt(self, cache: KVCache, ids: Sequence[int]) -> None:
        """Talk over this cache of the document `ids` from now on; earlier turns are forgotten."""
        assert cache.position == len(ids), f"{cache.position} tokens read of {len(ids)}"
        self.cache, self.document = cache, list(ids)
        self.turns, self._talk, self._pending = [], [], []

    def use(self, method: Method) -> Generator[Progress, None, None]:
        """Read the document and the turns again with another method.

        If the consumer stops in between, the session is as it was.
        """
        cache = self.engine.empty_cache()
        if self.document:
            reading = yield from self.read(self.document, [Compression(method)])
            cache, self.select_seconds = reading.caches[0], reading.select_seconds
        if self._talk:
            yield from self.engine.extend(cache, self._talk)
        self.cache = cache

    def clear(self) -> None:
        """Forget the conversation and keep the document: the tail gets shorter."""
        self.cache.truncate(len(self.document))
        self.turns, self._talk, self._pending = [], [], []

    def ask(
        self,
        question: str,
        sampling: Sampling | None = None,
        max_tokens: int = MAX_TOKENS,
        stop: Sequence[str] = (),
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generator[Progress | Delta | TurnDone, None, None]:
        """Answer a question; ends with `TurnDone`. A cancelled answer is kept as far as it came.

        Raises KvchatError("too_long") if the question does not fit into the window; the session
        is then as it was.
        """
        started = perf_counter()
        ids = self._turn_ids(question)
        room = self.limit - self.cache.position - len(ids)
        if room < 1:
            raise KvchatError(
                "too_long",
                f"the question needs {len(ids):,} tokens and one for the answer; of the window's "
                f"{self.limit:,} tokens {self.cache.position:,} are used",
                *(
                    ["/clear  (forgets the conversation, keeps the document)"]
                    if self.turns
                    else ["a shorter question or document"]
                ),
                needed=self.cache.position + len(ids),
                limit=self.limit,
            )
        before, cache = self.cache.position, self.cache
        self._asked += 1
        asked = self._asked
        try:
            reading = self.engine.extend(self.cache, ids)
            logits = yield from self._until_cancelled(reading, cancelled)
            if logits is None:  # nothing of the question is in the cache
                yield TurnDone("", "cancelled", len(ids), 0, perf_counter() - started, 0.0)
                return
            stops = tuple(filter(None, (*self.dialogue.form.stop, *stop)))
            answer = _Answer(TextStream(self.dialogue.tokenizer), stops)
            tokens = self.engine.decode(self.cache, logits, sampling or Sampling())
            first = last = started
            reason = ""
            for token in tokens:
                last = perf_counter()
                first = last if not answer.tokens else first
                if text := answer.push(token, is_end=token in self.ends):
                    yield Delta(text)
                if reason := self._finished(answer, room, max_tokens, cancelled):
                    break
            if text := answer.flush():
                yield Delta(text)
        except BaseException:  # nobody waited for the end: the question was not asked
            if self._asked == asked and self.cache is cache:
                cache.truncate(before)
            raise
        self._record(before, question, ids, answer, reason)
        count = len(answer.tokens)
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
        if not self._pending or self._pending[0] not in self.ends:
            return self._pending + ids
        # The end token that was sampled is the template's own, or stands in its place; what the
        # template writes before its own (a space, in some) was not sampled.
        end = next((i for i, token in enumerate(ids) if token in self.ends), None)
        if end is None or self.dialogue.tokenizer.decode(ids[:end]).strip():
            return self._pending + ids
        return ids[end:]

    def _finished(
        self, answer: "_Answer", room: int, max_tokens: int, cancelled: Callable[[], bool]
    ) -> str:
        """Why the answer ends here, or an empty string."""
        count = len(answer.tokens)
        if answer.stopped or answer.tokens[-1] in self.ends:
            return "stop"
        if cancelled():
            return "cancelled"
        if count >= min(room, max_tokens):
            return "window" if count >= room else "length"
        return ""

    def _record(
        self, before: int, question: str, ids: list[int], answer: "_Answer", reason: str
    ) -> None:
        """Note a finished turn that began at position `before`."""
        begin = before + len(ids)
        if answer.stopped:  # what made the stop string is no part of the conversation
            self.cache.truncate(begin + answer.whole_tokens)
        fed = self.cache.position - begin
        self._talk += ids + answer.tokens[:fed]
        self._pending = [] if answer.stopped else answer.tokens[fed:]
        self.turns.append(Turn(question, answer.text, reason))

    @staticmethod
    def _until_cancelled(
        reading: Generator[Progress, None, Tensor], cancelled: Callable[[], bool]
    ) -> Generator[Progress, None, Tensor | None]:
        while True:
            try:
                progress = next(reading)
            except StopIteration as stop:
                return stop.value
            if cancelled():
                reading.close()
                return None
            yield progress


@dataclass
class _Answer:
    """The text of an answer so far; holds back what may be the beginning of a stop string."""

    stream: TextStream
    stops: tuple[str, ...]
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    held: str = ""
    stopped: bool = False
    safe: list[tuple[int, int]] = field(default_factory=list)  # (tokens, characters) at whole text

    def push(self, token: int, is_end: bool) -> str:
        """Text that is certain after `token`; an end token has none."""
        self.tokens.append(token)
        if is_end:
            return ""
        sure = self._release(self.stream.push(token), final=False)
        if self.stream.is_whole and not self.stopped:
            self.safe.append((len(self.tokens), len(self.text) + len(self.held)))
        return sure

    @property
    def whole_tokens(self) -> int:
        """Tokens, from the first, whose text is whole and lies inside the answer's."""
        inside = (tokens for tokens, characters in self.safe if characters <= len(self.text))
        return max(inside, default=0)

    def flush(self) -> str:
        """The rest of the text, once no more tokens come."""
        return "" if self.stopped else self._release(self.stream.flush(), final=True)

    def _release(self, new: str, final: bool) -> str:
        self.held += new
        found = [at for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if found:
            self.stopped, self.held = True, self.held[: min(found)]
        keep = 0 if final or self.stopped else self._unsure()
        sure, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        self.text += sure
        return sure

    def _unsure(self) -> int:
        """Characters at the end that begin some stop string."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        for length in range(min(longest, len(self.held)), 0, -1):
            if any(stop.startswith(self.held[-length:]) for stop in self.stops):
                return length
        return 0
