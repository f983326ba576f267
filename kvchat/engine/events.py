"""What happens while the engine works: one stream of numbers and text for all who show it."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

E = TypeVar("E")
R = TypeVar("R")


@dataclass(frozen=True)
class Loading:
    """Weights: bytes of the checkpoint done and in all; `note`: what else has to be done."""

    done: int
    total: int
    note: str = ""


@dataclass(frozen=True)
class Progress:
    """A prefill: `done` and `total` count tokens times layers; KV bytes kept so far."""

    layer: int
    layers: int
    done: int
    total: int
    kv_bytes: int


@dataclass(frozen=True)
class Restored:
    """A document that was cached was mapped in `seconds`, with so many KV bytes."""

    tokens: int
    layers: int
    kv_bytes: int
    seconds: float


@dataclass(frozen=True)
class Smaller:
    """Memory ran out at a chunk of a prefill: it goes on with chunks of `chunk` tokens."""

    chunk: int


@dataclass(frozen=True)
class Forgotten:
    """The window was full: so many of the oldest turns, with their tokens, are dropped."""

    turns: int
    tokens: int


@dataclass(frozen=True)
class Unending:
    """The window would be full, and the chat goes on: of its `tokens` so far `compressed` ones are
    seen by `entries` of every KV head, the others as they are. It is said once."""

    tokens: int
    compressed: int
    entries: int


@dataclass(frozen=True)
class Delta:
    """A piece of the answer, whole characters only; `tokens` have been drawn for it so far."""

    text: str
    tokens: int = 0


@dataclass(frozen=True)
class Thought:
    """A piece of what the model thinks before it answers; `tokens` have been drawn so far."""

    text: str
    tokens: int = 0


@dataclass(frozen=True)
class TurnDone:
    """The end of an answer.

    `finish_reason`: `stop` (end of turn), `length` (token limit), `window` (context full),
    `cancelled`, or `repetition`: the answer went round in circles, and `answer` has only once what
    was told again and again as `Delta`. Seconds from the question's arrival to the first token, and
    from first to last. `reasoning` is what the model thought before, in so many of all the tokens.
    """

    answer: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    ttft: float
    decode_seconds: float
    reasoning: str = ""
    reasoning_tokens: int = 0

    @property
    def tokens_per_second(self) -> float:
        """(n - 1) / (t_last - t_first); 0 for fewer than two tokens."""
        if self.completion_tokens < 2 or self.decode_seconds <= 0:
            return 0.0
        return (self.completion_tokens - 1) / self.decode_seconds


@dataclass(frozen=True)
class Turn:
    """A question and its answer, with their tokens.

    `ids` is what the turn put into the cache; the first `asked` of them end where the answer
    begins. `pending` is the last sampled token, which the next turn feeds. `reasoning` is what the
    model thought, and the first `thought` of its `tokens` are that; `thinks` is what it was told.
    Once history has dropped a thought, `whole` is the turn that still has its tokens.
    """

    question: str
    answer: str
    finish_reason: str
    ids: tuple[int, ...] = ()
    asked: int = 0
    pending: tuple[int, ...] = ()
    reasoning: str = ""
    thought: int = 0
    thinks: bool | None = None
    whole: "Turn | None" = None

    @property
    def tokens(self) -> tuple[int, ...]:
        """The answer's tokens, after those of its thought."""
        return (*self.ids[self.asked :], *self.pending)


def drain(events: Generator[E, None, R], show: Callable[[E], object] = lambda event: None) -> R:
    """Show every event of a generator and return its value."""
    while True:
        try:
            show(next(events))
        except StopIteration as stop:
            result: R = stop.value
            return result
