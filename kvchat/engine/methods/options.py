"""Options of the compression methods: their types, defaults, bounds, presets and what they do.

The one declaration of them. A method's class inherits its options; plans, completion and
`kvchat methods` read them from here, which needs no torch.
"""

from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from kvchat.engine.budget import DEFAULT_BUDGET, Budget
from kvchat.engine.cache import AGGREGATES
from kvchat.engine.sizes import CHUNK, CODED, CODES, PER_CENTROID, REPLAY, code_bytes
from kvchat.errors import KvchatError

T = TypeVar("T")
REPEAT, ASK = "repeat", "ask"  # what a replay is: the text again, or its sentences as questions
POOLS = ("max", "avg")
SCORES = ("mass", "squared")
RULES = ("floor", "mix")
WEIGHINGS = ("mass", "value", "change")
WEIGH = "attention; times value norm; over input norm; the first and the last added"
MODES = ("budget", "eps")
VALUES = ("votes", "paper")
HOMES = ("auto", "device", "host", "disk")
BOUNDS = ("layer", "head")
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
class CaMOptions(EvictionOptions):
    """Of conversations whose old turns are compressed."""

    targets: int = option(32, "later entries that share an evicted entry's value", 1)


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


@dataclass(frozen=True)
class KVzapOptions(ToldOptions):
    """Of what a gate tells."""


@dataclass(frozen=True)
class KVzipOptions(ToldOptions):
    """Of methods that replay the document."""

    tell: str = option(REPEAT, "replays: the text again, or its sentences", choices=(REPEAT, ASK))
    chunk: int = option(CHUNK, "tokens of the document that one replay is about", 32, REPLAY)
    weigh: str = option("both", WEIGH, choices=(*WEIGHINGS, "both"))
    PRESETS: ClassVar = {"paper": {"weigh": "mass", "even": 0.0, "near": 0.0}}


@dataclass(frozen=True)
class KVzipPlusOptions(KVzipOptions):
    """Weighed by what an entry can change."""

    weigh: str = option("change", WEIGH, choices=(*WEIGHINGS, "both"))
    PRESETS: ClassVar = {"paper": {"even": 0.0, "near": 0.0}}


@dataclass(frozen=True)
class AskallOptions(KVzipOptions):
    """Sentences as questions."""

    tell: str = option(ASK, "replays: the text again, or its sentences", choices=(REPEAT, ASK))
    chunk: int = option(REPLAY, "tokens of the document that one replay is about", 32, REPLAY)
    weigh: str = option("value", WEIGH, choices=(*WEIGHINGS, "both"))
    PRESETS: ClassVar = {}


AS_PRINTED = {"mode": "eps", "sinks": 0, "longest": 0, "skip": "0+0", "value": "paper"}


@dataclass(frozen=True)
class KVMergerOptions(Stored):
    """Of merging. `50` and `35` have the paper's shares, `paper` is its algorithm as printed."""

    budget: Budget = option(DEFAULT_BUDGET, "what is kept; the paper's mode finds its own size")
    mode: str = option("budget", "merge down to the budget, or above eps", choices=MODES)
    eps: float = option(0.75, "cosine of neighbours that merge, in mode=eps")
    recent: float = option(0.23, "share of the kept entries that are the newest", 0, 1)
    heavy: float = option(0.06, "share of the kept entries that are attended to most", 0, 1)
    sinks: int = option(4, "first tokens that always stay", 0)
    longest: int = option(16, "entries that merge into one at most; 0: any number", 0)
    skip: str = option("auto", "FIRST+LAST layers that stay whole")
    sigma: float = option(0.0, "width of the Gaussian; 0: from the mean distance in a run", 0)
    value: str = option("votes", "tokens weigh in the softmax, or multiply values", choices=VALUES)
    PRESETS: ClassVar = {
        "50": {"budget": Budget(fraction=0.5), "recent": 0.34, "heavy": 0.24},
        "35": {"budget": Budget(fraction=0.35), "recent": 0.23, "heavy": 0.06},
        "paper": {"recent": 0.17, "heavy": 0.12} | AS_PRINTED,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recent + self.heavy > 1:
            given = f"recent={self.recent:g} and heavy={self.heavy:g} are more than all"
            raise KvchatError("usage", given, "recent=0.34,heavy=0.24")
        if self.longest == 1:
            raise KvchatError("usage", "longest=1 merges nothing", "longest=16")
        parts = self.skip.split("+")
        if self.skip != "auto" and not (len(parts) == 2 and all(p.isdecimal() for p in parts)):
            raise KvchatError(
                "usage", f"skip={self.skip} is not FIRST+LAST layers", "skip=2+1", "skip=auto"
            )
        if self.mode == "eps":
            if self.budget is not DEFAULT_BUDGET and self.budget != EVERYTHING:
                raise KvchatError(
                    "usage",
                    f"mode=eps finds its own size; a budget of {self.budget} cannot be met",
                    "kvmerger:mode=eps without --budget",
                    f"kvmerger --budget {self.budget}",
                )
            object.__setattr__(self, "budget", EVERYTHING)


@dataclass(frozen=True)
class LookupOptions(Options):
    """Of methods that keep every entry, and look up for each token which of them it reads."""

    AWAY: ClassVar[float] = 1.0  # the share of an entry that is at home, wherever that is

    budget: Budget = option(DEFAULT_BUDGET, "what each decoded token reads")
    recent: float = option(0.5, "share of the budget for the newest entries", 0, 1)
    sinks: int = option(32, "first tokens that are always read", 0)
    aggregate: str = option("softmax_sum", "how a group's heads agree", choices=AGGREGATES)
    block: int = option(64, "entries that leave the window at a time", 1)
    most_recent: int = option(4096, "entries of the window at most", 0)
    dense_layers: int = option(0, "first layers that are read in full", 0)
    dense_below: int = option(CODED, "entries to choose from, below which all are read", 0)
    home: str = option("auto", "where the entries are stored", choices=HOMES)

    def index_bytes(self, tokens: int, heads: int, dim: int) -> int:
        """What a layer's index takes beside the entries."""
        return 0

    def training_bytes(self, tokens: int, heads: int, dim: int) -> int:
        """What making it takes for a moment."""
        return 0


@dataclass(frozen=True)
class PQCacheOptions(LookupOptions):
    """Of product quantization. `paper` has the paper's window, `quality` finer codes."""

    m: int = option(CODES[""][0], "parts of a key's code", 1)
    code_bits: int = option(CODES[""][1], "bits of a part", 1, 8)
    iters: int = option(10, "iterations of K-means", 0)
    extra_sinks: bool = option(False, "sinks come on top of the budget")
    seed: int = option(4321, "of the first centroids", 0)
    PRESETS: ClassVar = {
        "paper": {"block": 1, "most_recent": 2**31 - 1, "extra_sinks": True},
        "quality": {"m": CODES["quality"][0], "code_bits": CODES["quality"][1], "dense_layers": 2},
    }

    def index_bytes(self, tokens: int, heads: int, dim: int) -> int:
        return code_bytes(tokens, heads, dim, self.m, self.code_bits)

    def training_bytes(self, tokens: int, heads: int, dim: int) -> int:
        """Sampled keys in fp32, twice."""
        return 8 * min(tokens, PER_CENTROID << self.code_bits) * heads * dim


@dataclass(frozen=True)
class SqueezedOptions(LookupOptions):
    """Of clusters of keys. `paper` is without sinks and window."""

    clusters: float = option(0.05, "clusters, as a share of the entries", 0.0001, 1)
    levels: int = option(1, "of clusters that a query is compared with", 1, 2)
    coarse: float = option(0.01, "clusters of the first of two levels, as a share", 0.0001, 1)
    window: int = option(100, "last queries by which bounds are set", 1, 2**20)
    per: str = option("layer", "what has a bound of its own", choices=BOUNDS)
    iters: int = option(10, "iterations of K-means", 0)
    seed: int = option(4321, "of the first centroids", 0)
    PRESETS: ClassVar = {"paper": {"recent": 0.0, "sinks": 0}}

    def index_bytes(self, tokens: int, heads: int, dim: int) -> int:
        """Centroids in fp32; a cluster's number, its place in a list and its size."""
        count = tokens * (self.clusters + (self.coarse if self.levels == 2 else 0))
        return heads * int(4 * count * (dim + 2) + 8 * tokens)

    def training_bytes(self, tokens: int, heads: int, dim: int) -> int:
        """Keys in fp32, as they are and of length one, and once more by cluster."""
        return 12 * tokens * heads * dim


@dataclass(frozen=True)
class KCacheOptions(LookupOptions):
    """Of exact scores of all keys. `paper` is without sinks and window."""

    AWAY: ClassVar[float] = 0.5
    PRESETS: ClassVar = {"paper": {"recent": 0.0, "sinks": 0}}
