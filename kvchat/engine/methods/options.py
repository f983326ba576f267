"""Options of the compression methods: their types, defaults, bounds, presets and what they do.

The one declaration of them. A method's class inherits its options; plans, completion and
`kvchat methods` read them from here, which needs no torch.
"""

from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from kvchat.engine.budget import DEFAULT_BUDGET, Budget
from kvchat.engine.sizes import CHUNK, REPLAY
from kvchat.errors import KvchatError

T = TypeVar("T")
# what a replay is: the text again, beside that part of the document or beside all of it, or its
# sentences as questions
REPEAT, WHOLE, ASK = "repeat", "whole", "ask"
TELLS = (REPEAT, WHOLE, ASK)
TELL = "replays: the text again, beside its own part or the whole; or its sentences"
POOLS = ("max", "avg")
SCORES = ("mass", "squared")
CORM_MODES = ("budget", "rule")
RULES = ("floor", "mix")
WEIGHINGS = ("mass", "value", "change")
WEIGH = "attention; times value norm; over input norm; the first and the last added"
EVERYTHING = Budget(fraction=1.0)
BITS = (16, 8, 4, 2)


@dataclass(frozen=True)
class Rule:
    """What an option does, and which values it may have."""

    help: str
    least: float | None = None
    most: float | None = None
    choices: tuple[object, ...] = ()

    def check(self, name: str, value: Any, usual: Any) -> None:
        """Raise KvchatError("usage") unless `value` is allowed."""
        if self.choices and value not in self.choices:
            tries = [f"{name}={choice}" for choice in self.choices]
            raise KvchatError("usage", f"{name}={value} is unknown", *tries)
        low = self.least is not None and not value >= self.least
        high = self.most is not None and not value <= self.most
        if not low and not high:
            return
        if self.least is not None and self.most is not None:
            why = f"outside {self.least:,}–{self.most:,}"
        else:
            why = f"below {self.least:,}" if low else f"above {self.most:,}"
        raise KvchatError("usage", f"{name}={value} is {why}", f"{name}={usual}")


def option(
    default: T,
    help: str,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[object, ...] = (),
) -> T:
    """A dataclass field that is an option: from `least` to `most`, or one of `choices`."""
    found: Any = field(default=default, metadata={"rule": Rule(help, least, most, choices)})
    return found  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Options:
    """The options of a method. Raises KvchatError("usage") for values that are not allowed."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}  # option values by name of the preset

    def __post_init__(self) -> None:
        for each in fields(self):
            if rule := each.metadata.get("rule"):
                rule.check(each.name, getattr(self, each.name), each.default)


@dataclass(frozen=True)
class Stored(Options):
    """Of every method whose entries can be stored in few bits: all that keep them in one segment.

    KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache, https://arxiv.org/abs/2402.02750:
    keys per channel, values per token, in groups of 32. Its residual window is the conversation's
    tail, and of the document `residual` entries. A budget in bytes keeps more entries then; one in
    entries or as a share keeps as many in less.
    """

    _: KW_ONLY
    bits: int = option(16, "bits of a stored value: 8, 4, 2, or 16 for the model's", choices=BITS)
    residual: int = option(0, "with fewer bits: newest entries of a head that stay whole", 0)


@dataclass(frozen=True)
class EvictionOptions(Stored):
    """Of every method that keeps some entries and frees the others."""

    budget: Budget = option(DEFAULT_BUDGET, "what is kept")
    sinks: int = option(4, "first tokens that always stay", 0)


@dataclass(frozen=True)
class KnormOptions(EvictionOptions):
    """`paper` keeps no sinks."""

    PRESETS: ClassVar = {"paper": {"sinks": 0}}


@dataclass(frozen=True)
class TOVAOptions(EvictionOptions):
    """No sinks, as in the paper."""

    sinks: int = option(0, "first tokens that always stay", 0)


@dataclass(frozen=True)
class H2OOptions(EvictionOptions):
    """No sinks, as in the paper."""

    sinks: int = option(0, "first tokens that always stay", 0)
    recent: float = option(0.5, "share of the budget for the newest entries", 0, 1)
    average: bool = option(False, "divide an entry's attention by the queries that could see it")


@dataclass(frozen=True)
class CaMOptions(H2OOptions):
    """H2O's, and where the values of what it evicts go."""

    targets: int = option(32, "next kept entries that share an evicted entry's value", 1)


@dataclass(frozen=True)
class ExpectedOptions(EvictionOptions):
    """Of the Gaussian of coming queries."""

    future: int = option(512, "coming positions over which queries are averaged", 1, 2**20 - 1)
    epsilon: float = option(0.0, "added to the expected attention", 0)


@dataclass(frozen=True)
class WindowOptions(EvictionOptions):
    """Of methods that observe the last queries."""

    window: int = option(32, "last queries that are observed; their entries stay", 1, 2**31 - 1)
    kernel: int = option(7, "width of smoothing along tokens; odd", 1, 2**15 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise KvchatError("usage", f"kernel={self.kernel} must be odd", "kernel=7")


@dataclass(frozen=True)
class SnapOptions(WindowOptions):
    """`paper` is SnapKV's LongBench setting, without sinks."""

    pool: str = option("max", "how scores are smoothed", choices=POOLS)
    score_by: str = option(
        "mass", "attention, or squared attention pooled per query head", choices=SCORES
    )
    PRESETS: ClassVar = {"paper": {"window": 32, "kernel": 7, "pool": "max", "sinks": 0}}


@dataclass(frozen=True)
class AdaptiveOptions(SnapOptions):
    """Of shares over heads. `paper` is the authors' setting with their safeguard."""

    floor: float = option(0.2, "share of an even budget that every head is sure of", 0, 1)
    rule: str = option("floor", "floor first, then global; or mixed with even", choices=RULES)
    PRESETS: ClassVar = {
        "paper": {"window": 32, "kernel": 7, "pool": "max", "sinks": 0, "rule": "mix"}
    }


@dataclass(frozen=True)
class PyramidOptions(SnapOptions):
    """Of shares over layers."""

    beta: int = option(20, "the last layer gets 1/beta of an even share", 1)


@dataclass(frozen=True)
class AdaPyramidOptions(AdaptiveOptions, PyramidOptions):
    """Of shares over heads and layers."""


@dataclass(frozen=True)
class CriticalOptions(SnapOptions):
    """Of CriticalKV's two stages."""

    first: float = option(0.5, "share of the entries that attention alone decides", 0, 1)
    epsilon: float = option(1e-4, "added to the attention before it is weighed", 0)


@dataclass(frozen=True)
class CriticalAdaOptions(CriticalOptions, AdaptiveOptions):
    """Of CriticalKV over Ada-KV's shares."""


@dataclass(frozen=True)
class DefensiveOptions(WindowOptions):
    """Of the worst case over queries."""

    kernel: int = option(5, "width of smoothing along tokens; odd", 1, 2**15 - 1)
    secure: float = option(0.9, "attention of a head whose entries stay in any case", 0, 1)


@dataclass(frozen=True)
class PooledOptions(EvictionOptions):
    """Of methods whose layers share one budget."""

    even: float = option(0.2, "share of an even budget that every head is sure of", 0, 1)


@dataclass(frozen=True)
class KVCompressOptions(PooledOptions, WindowOptions):
    """Of one budget by squared attention. `paper` is without sinks and safeguard."""

    window: int = option(8, "last queries that are observed; their entries stay", 1, 2**31 - 1)
    PRESETS: ClassVar = {"paper": {"even": 0.0, "sinks": 0}}


@dataclass(frozen=True)
class ToldOptions(PooledOptions):
    """Of what is told beforehand about every entry."""

    near: float = option(0.5, "weight of the mean score around an entry, within a head", 0)
    means: int = option(4, "entries of each head that stand for what is evicted", 0, 64)


@dataclass(frozen=True)
class KVzapOptions(ToldOptions):
    """Of what a gate tells."""


@dataclass(frozen=True)
class KVzipOptions(ToldOptions):
    """Of methods that replay the document."""

    tell: str = option(REPEAT, TELL, choices=TELLS)
    chunk: int = option(CHUNK, "tokens of the document that one replay is about", 32, REPLAY)
    weigh: str = option("both", WEIGH, choices=(*WEIGHINGS, "both"))
    PRESETS: ClassVar = {
        "paper": {"tell": WHOLE, "weigh": "mass", "even": 0.0, "near": 0.0, "means": 0}
    }


@dataclass(frozen=True)
class KVzipPlusOptions(KVzipOptions):
    """Weighed by what an entry can change."""

    weigh: str = option("change", WEIGH, choices=(*WEIGHINGS, "both"))
    PRESETS: ClassVar = {"paper": {"tell": WHOLE, "even": 0.0, "near": 0.0, "means": 0}}


@dataclass(frozen=True)
class AskallOptions(KVzipOptions):
    """Sentences as questions."""

    tell: str = option(ASK, TELL, choices=TELLS)
    chunk: int = option(REPLAY, "tokens of the document that one replay is about", 32, REPLAY)
    weigh: str = option("value", WEIGH, choices=(*WEIGHINGS, "both"))
    PRESETS: ClassVar = {}


def own_size(mode: str, budget: Budget, name: str) -> Budget:
    """The budget of a mode that finds its own size. Raises KvchatError("usage") for a smaller
    one."""
    if budget is not DEFAULT_BUDGET and budget != EVERYTHING:
        raise KvchatError(
            "usage",
            f"mode={mode} finds its own size; a budget of {budget} cannot be met",
            f"{name}:mode={mode} without --budget",
            f"{name} --budget {budget}",
        )
    return EVERYTHING


@dataclass(frozen=True)
class CORMOptions(WindowOptions):
    """Of what no recent query needs. `paper` keeps what its rule keeps, of any size."""

    kernel: int = option(1, "width of smoothing along tokens; odd", 1, 2**15 - 1)
    mode: str = option("budget", "keep the budget, or what the rule keeps", choices=CORM_MODES)
    PRESETS: ClassVar = {"paper": {"mode": "rule", "window": 256, "sinks": 0}}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "rule":
            object.__setattr__(self, "budget", own_size(self.mode, self.budget, "corm"))
