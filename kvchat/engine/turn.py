"""A question with its answer, as tokens of the cache."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """A question and its answer, with their tokens.

    `ids` is what the turn put into the cache; the first `asked` of them end where the answer
    begins. `pending` is the last sampled token, which the next turn feeds.
    """

    question: str
    answer: str
    finish_reason: str
    ids: tuple[int, ...] = ()
    asked: int = 0
    pending: tuple[int, ...] = ()

    @property
    def tokens(self) -> tuple[int, ...]:
        """The answer's tokens."""
        return (*self.ids[self.asked :], *self.pending)
