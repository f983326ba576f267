"""What a method wants to be shown, and what may be known of any method without torch."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from kvchat.engine.budget import Budget

Kind = tuple[str, int]  # what a replay is, and how many tokens of the document it is about


class ReplayScore(NamedTuple):
    """Scores by replays: what is replayed, how many tokens of the document at a time, and how its
    attention is weighed. `GATE` stands for what a gate tells without any."""

    what: str
    chunk: int
    weigh: str


GATE = ReplayScore("gate", 0, "linear")


@dataclass(frozen=True)
class Needs:
    """What a method wants to be shown beside keys and values; the prefill gathers it.

    `queries`: how many of the last queries (W). `column_mass`: the attention that every entry gets
    from all queries. `future`: over how many coming positions the moments of the queries are to be
    averaged; 0 for no moments. `replay_scores`: scores from replays of the document.
    `features`: maps that were fitted to the model.
    """

    queries: int = 0
    column_mass: bool = False
    future: int = 0
    replay_scores: frozenset[ReplayScore] = frozenset()
    features: bool = False

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(
            max(self.queries, other.queries),
            self.column_mass or other.column_mass,
            max(self.future, other.future),
            self.replay_scores | other.replay_scores,
            self.features or other.features,
        )

    def __bool__(self) -> bool:
        return self != Needs()

    @property
    def sees(self) -> bool:
        """Whether a question in view makes a difference."""
        return bool(self.queries or self.column_mass or self.future)

    @property
    def kinds(self) -> frozenset[Kind]:
        """The replays that are needed."""
        return frozenset((what, chunk) for what, chunk, _ in self.replay_scores - {GATE})

    @property
    def gate(self) -> bool:
        """Whether a gate is to tell what entries are worth."""
        return GATE in self.replay_scores


class Chosen(Protocol):
    """The method that a person has chosen, as far as it is described and drawn."""

    @property
    def budget(self) -> Budget:
        """What it keeps."""

    @property
    def needs(self) -> Needs:
        """What it wants to be shown."""
