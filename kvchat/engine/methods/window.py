"""Options and scores that methods with an observation window share. Not a method itself."""

from dataclasses import dataclass

from torch import Tensor

from kvchat.engine.budget import Geometry
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.checks import require_known
from kvchat.engine.methods.eviction import Eviction
from kvchat.engine.methods.needs import Needs
from kvchat.engine.methods.scores import POOLS, SCORES, pooled_mass
from kvchat.errors import KvchatError


@dataclass(frozen=True)
class Window(Eviction):
    """Observes the last `window` queries, and keeps the entries that they belong to.

    `kernel` is the width over which scores are smoothed along tokens.
    """

    window: int = 32
    kernel: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.window < 2**31:
            raise KvchatError(
                "usage", f"{self.name}: window={self.window} is not a size", "window=32"
            )
        if not 1 <= self.kernel < 2**15 or self.kernel % 2 == 0:
            raise KvchatError(
                "usage",
                f"{self.name}: kernel={self.kernel} must be odd and below 32,768",
                "kernel=7",
            )

    @property
    def needs(self) -> Needs:
        """The observation window W."""
        return Needs(queries=self.window)

    def newest(self, each: int) -> int:
        """The window itself, at most half of an even share."""
        return min(self.window, max(1, each // 2))

    def require_room(self, total: int, geometry: Geometry) -> None:
        """A budget given as a size holds window, sinks and an entry beside them.

        A share of a short document need not: it protects fewer entries, and leaves some to choose.
        """
        each, least = total // geometry.heads, self.window + self.sinks + 1
        if self.budget.fraction is not None or total == geometry.full or each >= least:
            return
        fitting = [f"{self.name}:window={each - self.sinks - 1}"] if each > self.sinks + 1 else []
        raise KvchatError(
            "usage",
            f"{self.name} always keeps the last {self.window} entries and the first "
            f"{self.sinks} of every head; a budget of {self.budget} leaves {each} per head",
            f"--budget {self.budget.of_entries(least, geometry)} or more",
            *fitting,
            entries=each,
            needed=least,
        )


@dataclass(frozen=True)
class WindowEviction(Window):
    """Scores entries by what the observation queries attend to, smoothed by `pool`.

    `score_by=squared` takes squared attention, pooled per query head (KV-Compress,
    https://arxiv.org/abs/2410.00161).
    """

    pool: str = "max"
    score_by: str = "mass"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(self, "pool", POOLS)
        require_known(self, "score_by", SCORES)

    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        """Pooled attention of the observation queries."""
        return pooled_mass(prefilled, entries, self.kernel, self.pool, self.score_by)
