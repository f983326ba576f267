"""Options of the methods that merge entries, or store them in bits of their own."""

from dataclasses import dataclass
from typing import ClassVar

from kvchat.engine.budget import DEFAULT_BUDGET, Budget
from kvchat.engine.methods.options import EvictionOptions, Options, Stored, option, own_size
from kvchat.errors import KvchatError

MODES = ("budget", "eps")
VALUES = ("votes", "paper")
MEANS = ("votes", "plain")
SPARSE = ("h2o", "streamingllm", "snapkv", "adakv")
AS_PRINTED = {"mode": "eps", "sinks": 0, "longest": 0, "value": "paper"}


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
    skip: str = option("0+0", "FIRST+LAST layers that stay whole")
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
        if not (len(parts) == 2 and all(p.isdecimal() for p in parts)):
            given = f"skip={self.skip} is not FIRST+LAST layers"
            raise KvchatError("usage", given, "skip=2+1", "skip=0+0")
        if self.mode == "eps":
            object.__setattr__(self, "budget", own_size(self.mode, self.budget, "kvmerger"))


@dataclass(frozen=True)
class ElasticOptions(Stored):
    """Of anchors. `paper` takes plain means, and the newest 25 entries."""

    budget: Budget = option(DEFAULT_BUDGET, "what is kept")
    sinks: int = option(4, "first tokens that are anchors", 0)
    recent: int = option(32, "newest entries that are anchors", 1)
    value: str = option("votes", "a merged entry counts as its tokens, or once", choices=MEANS)
    PRESETS: ClassVar = {"paper": {"sinks": 1, "recent": 25, "value": "plain"}}


@dataclass(frozen=True)
class LessOptions(EvictionOptions):
    """Of a state of what is evicted. `paper` has H2O's entries, `lambda` sinks and newest ones."""

    sparse: str = option("h2o", "the method that says which entries stay", choices=SPARSE)
    PRESETS: ClassVar = {
        "paper": {"sparse": "h2o", "sinks": 0},
        "lambda": {"sparse": "streamingllm"},
    }


@dataclass(frozen=True)
class QAQOptions(Options):
    """Of an error that is allowed. `paper` allows a given one, whatever size that has."""

    budget: Budget = option(DEFAULT_BUDGET, "what is kept, in bytes of whole entries")
    mode: str = option("budget", "the least error that the budget allows, or eps", choices=MODES)
    eps: float = option(3.0, "error allowed in the output, in mode=eps", 1e-9)
    rows: int = option(5, "last queries that say what gets attention", 1)
    norm: float = option(0.0, "norm of queries; 0: of those that are observed", 0)
    recent: int = option(32, "newest entries that stay whole", 1)
    sinks: int = option(4, "first tokens that stay whole", 0)
    PRESETS: ClassVar = {"paper": {"mode": "eps", "norm": 300.0, "sinks": 0}}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "eps":
            object.__setattr__(self, "budget", own_size(self.mode, self.budget, "qaq"))
