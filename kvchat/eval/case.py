"""What an evaluation asks: documents, questions about them, and what a right answer holds."""

from collections.abc import Callable
from dataclasses import dataclass

from kvchat.eval.metrics import METRICS

LONGEST = 48  # tokens of an answer


@dataclass(frozen=True)
class Question:
    """A question and what its answer is scored by.

    `metric` is a key of METRICS; `answers` are the parts of a right answer or the ways to give it,
    as the metric says, `choices` what is chosen from. `depth` is where in the document the answer
    stands: 0 its beginning, 1 its end, None where it stands in several places. `longest` are the
    tokens that an answer may have, `begun` is written at its beginning, before the model goes on.
    """

    text: str
    answers: tuple[str, ...]
    kind: str
    metric: str = "all"
    depth: float | None = None
    choices: tuple[str, ...] = ()
    longest: int = LONGEST
    begun: str = ""

    def __post_init__(self) -> None:
        assert self.metric in METRICS, f"unknown metric {self.metric!r}"
        assert self.answers and all(self.answers), "a question without an answer"

    @property
    def answer(self) -> str:
        """The right answer for a person to read."""
        return ", ".join(self.answers)

    def score(self, given: str) -> float:
        """What `given` is worth, 0 to 1."""
        return METRICS[self.metric].score(given, self.answers, self.choices)

    def is_right(self, given: str) -> bool:
        """Whether `given` is worth all that there is."""
        return self.score(given) >= 1


@dataclass(frozen=True)
class Case:
    """A document and the questions about it."""

    document: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Draw:
    """What a document is made from: a seed, about how many tokens it shall have, how many questions
    to ask at most, and how deep in it a single needle goes, 0 to 1."""

    seed: int
    tokens: int
    questions: int = 1
    depth: float = 0.5


Task = Callable[[Draw], Case]
