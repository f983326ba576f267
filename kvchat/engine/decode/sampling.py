"""How the next token is to be chosen. Imports no torch: settings and plans read it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvchat.errors import KvchatError

# Dividing logits by less than this overflows; the likeliest token is certain long before.
COLD = 1e-5


@dataclass(frozen=True)
class Leaning:
    """What is added to logits: `bias` to those of some tokens; to those of tokens that the answer
    has, less by `presence`, and by `frequency` for each time that it has them."""

    presence: float = 0.0
    frequency: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampling:
    """How to choose; temperature 0 is greedy, 0 switches top-k and min-p off, 1 top-p."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks = (
            ("temp", self.temperature, self.temperature >= 0, "0 or more"),
            ("top-k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top-p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min-p", self.min_p, 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repeat-penalty", self.repeat_penalty, self.repeat_penalty > 0, "above 0"),
        )
        for name, value, good, wanted in checks:
            if not good:
                raise KvchatError("usage", f"--{name} {value:g} must be {wanted}")
