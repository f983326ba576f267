"""What a method wants to be shown, and what a program may know of any method. Imports no torch."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from kvchat.engine.budget import Budget
from kvchat.engine.sizes import REPLAY

REPEAT, ASK = "repeat", "ask"  # the document's text again, or its sentences as questions
Kind = tuple[str, int]  # what is told to the model again, and how many tokens at a time


class Telling(NamedTuple):
    """What is told to the model, how many tokens of the document at a time, and how its attention
    is weighed."""

    what: str
    chunk: int
    weigh: str


@dataclass(frozen=True)
class Needs:
    """What a method wants to be shown beside keys and values; the reading gathers it.

    `queries`: how many of the last queries (W). `column_mass`: the attention that every entry gets
    from all queries. `future`: over how many coming positions the moments of the queries are to be
    averaged; 0 for no moments. `tellings`: scores from replays of the document. `evidence`: about
    how many queries of its sentences as questions, and what they read from the whole layer.
    """

    queries: int = 0
    column_mass: bool = False
    future: int = 0
    tellings: frozenset[Telling] = frozenset()
    evidence: int = 0

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(
            max(self.queries, other.queries),
            self.column_mass or other.column_mass,
            max(self.future, other.future),
            self.tellings | other.tellings,
            max(self.evidence, other.evidence),
        )

    def __bool__(self) -> bool:
        return self != Needs()

    @property
    def sees(self) -> bool:
        """Whether a question in view makes a difference."""
        return bool(self.queries or self.column_mass or self.future)

    @property
    def kinds(self) -> frozenset[Kind]:
        """What is to be told to the model again."""
        kinds = frozenset((what, chunk) for what, chunk, _ in self.tellings)
        asks = any(what == ASK for what, _ in kinds)
        return kinds if asks or not self.evidence else kinds | {(ASK, REPLAY)}


class Chosen(Protocol):
    """The method that a person has chosen, as far as it is told and drawn."""

    @property
    def budget(self) -> Budget:
        """What it keeps."""
        ...

    @property
    def needs(self) -> Needs:
        """What it wants to be shown."""
        ...
