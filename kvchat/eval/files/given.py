"""What a file of a benchmark gives: documents with questions, and what it was not used for."""

from dataclasses import dataclass

from kvchat.eval.case import Case


@dataclass(frozen=True)
class Given:
    """The cases of a file in their order; `left_out` counts lines by the reason they are none."""

    cases: tuple[Case, ...]
    left_out: tuple[tuple[str, int], ...] = ()
