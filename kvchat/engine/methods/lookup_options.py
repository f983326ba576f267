"""Options of the methods that keep every entry and look up what a token reads."""

from dataclasses import dataclass
from typing import ClassVar

from kvchat.engine.budget import DEFAULT_BUDGET, Budget
from kvchat.engine.cache import AGGREGATES
from kvchat.engine.methods.options import Options, option
from kvchat.engine.sizes import CODED, CODES, PER_CENTROID, code_bytes

HOMES = ("auto", "device", "host", "disk")
BOUNDS = ("layer", "head")


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
    """Of clusters of keys. `paper` is without sinks and a window that is always read."""

    recent: float = option(0.2, "share of the budget for the newest entries", 0, 1)
    clusters: float = option(0.05, "clusters, as a share of the entries, at most", 0.0001, 1)
    levels: int = option(1, "of clusters that a query is compared with", 1, 2)
    coarse: float = option(0.01, "clusters of the first of two levels, as a share", 0.0001, 1)
    window: int = option(64, "last queries by which bounds are set", 1, 2**20)
    per: str = option("layer", "what has a bound of its own", choices=BOUNDS)
    iters: int = option(10, "iterations of K-means", 0)
    seed: int = option(4321, "of the first centroids", 0)
    PRESETS: ClassVar = {"paper": {"window": 100, "recent": 0.0, "sinks": 0}}

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

    recent: float = option(0.1, "share of the budget for the newest entries", 0, 1)
    PRESETS: ClassVar = {"paper": {"recent": 0.0, "sinks": 0}}
