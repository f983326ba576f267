"""The parts of the engine as a chat draws and drives them. Imports no torch, so that all of the
terminal can be tried with parts that only play their role."""

from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import Any, Protocol

from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import Delta, Progress, Smaller, TurnDone
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.turn import Turn

Answering = Generator[Progress | Smaller | Delta | TurnDone, None, None]


class Held(Protocol):
    """Bytes by where they are."""

    @property
    def device(self) -> int: ...
    @property
    def host(self) -> int: ...
    @property
    def disk(self) -> int: ...
    @property
    def total(self) -> int: ...


class Talk(Protocol):
    """An `engine.session.Session`: what is looked at of its engine and cache is not told here."""

    @property
    def engine(self) -> Any: ...
    @property
    def cache(self) -> Any: ...
    @property
    def dialogue(self) -> Dialogue: ...
    @property
    def document(self) -> list[int]: ...
    @property
    def turns(self) -> list[Turn]: ...
    @property
    def limit(self) -> int: ...
    @property
    def tail_budget(self) -> int: ...
    @property
    def folded(self) -> int: ...
    @property
    def by_question(self) -> bool: ...
    @property
    def question_seconds(self) -> float | None: ...
    @property
    def select_seconds(self) -> float: ...
    def memory(self) -> Held: ...
    def full_bytes(self) -> int: ...
    def ask(
        self,
        question: str,
        sampling: Sampling | None = None,
        max_tokens: int = ...,
        stop: Sequence[str] = (),
        cancelled: Callable[[], bool] = ...,
    ) -> Answering: ...
    def more(
        self,
        sampling: Sampling | None = None,
        max_tokens: int = ...,
        stop: Sequence[str] = (),
        cancelled: Callable[[], bool] = ...,
    ) -> Answering: ...
    def undo(self, count: int = 1) -> list[Turn]: ...
    def clear(self) -> None: ...
    def restore(self, turns: Sequence[Turn]) -> Generator[Progress | Smaller, None, None]: ...


class Promise(Protocol):
    """An `engine.promise.Kept`: how a budget was chosen."""

    @property
    def figures(self) -> dict[str, Any]: ...


class Shelf(Protocol):
    """`app.readings.Readings`: what was read before, saved while the chat goes on."""

    @property
    def full_copy(self) -> str: ...
    def tell(self) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
