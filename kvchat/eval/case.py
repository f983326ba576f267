"""What an evaluation asks: documents, questions about them, and what a right answer is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kvchat.eval.metrics import METRICS

LONGEST = 48  # tokens of an answer


@dataclass(frozen=True)
class Question:
    """A question and what its answer is scored by.

    `metric` is a key of METRICS; `answers` are the parts of a right answer or the ways to give it,
    as the metric says, `choices` what is chosen from. `depth` is where in the document the answer
    stands: 0 its beginning, 1 its end, None where it stands in several places. `longest` are the
    tokens that an answer may have; the answer begins with `begun`, and the model goes on from it.
    `fact` is the sentence of the document that has the answer, where there is only one.
    """

    text: str
    answers: tuple[str, ...]
    kind: str
    metric: str = "all"
    depth: float | None = None
    choices: tuple[str, ...] = ()
    longest: int = LONGEST
    begun: str = ""
    fact: str = ""

    def __post_init__(self) -> None:
        assert self.metric in METRICS, f"unknown metric {self.metric!r}"
        assert self.answers and all(self.answers), "a question without an answer"

    @property
    def answer(self) -> str:
        """The right answer for a person to read."""
        return ", ".join(self.answers)

    def score(self, given: str) -> float:
        """What `given` is worth, 0 to 1."""
        return METRICS[self.metric](given, self.answers, self.choices)

    def is_right(self, given: str) -> bool:
        """Whether `given` has the full score."""
        return self.score(given) >= 1


@dataclass(frozen=True)
class Case:
    """A document and the questions about it."""

    document: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Given:
    """The cases of a file in their order; `left_out` counts lines by the reason they are none."""

    cases: tuple[Case, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Draw:
    """What a document is made from: a seed, about how many tokens it shall have, the most questions
    to ask, and how deep in it a single needle goes, 0 to 1."""

    seed: int
    tokens: int
    questions: int = 1
    depth: float = 0.5


Task = Callable[[Draw], Case]
