"""PQCache: every entry is kept; codes of the keys say which ones a query has to read."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.budget import DEFAULT_BUDGET, Budget, Geometry
from kvchat.engine.cache.pq import AGGREGATES, PQSegment, Reads
from kvchat.engine.cache.segment import Segment
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.checks import require_known, require_least, require_share
from kvchat.engine.methods.clusters import Training, train
from kvchat.engine.methods.evict import keep_all
from kvchat.engine.methods.needs import Needs
from kvchat.engine.sizes import CODED, CODES
from kvchat.errors import KvchatError

HOMES = ("auto", "device", "host")


@dataclass(frozen=True)
class PQCache:
    """Keeps every entry, and lets a code of each key say which entries a written token reads.

    PQCache: Product Quantization-based KVCache for Long Context LLM Inference,
    https://arxiv.org/abs/2407.12820. The budget is what a token reads: `sinks`, a window of the
    newest entries (`recent` of the rest, at most `most_recent` entries) and the entries whose codes
    score best. Codes are `m` parts of `code_bits` bits, trained by K-means. Entries leave the
    window `block` at a time. Questions, several tokens at once, read every entry. Different here:
    the budget pays for the sinks (`extra_sinks=true` does not), K-means has a fixed number of
    iterations on the device that reads, and the first `dense_layers` layers and documents with
    fewer than `dense_below` entries to choose from are read in full.
    """

    budget: Budget = DEFAULT_BUDGET
    recent: float = 0.5
    sinks: int = 32
    m: int = CODES[""][0]
    code_bits: int = CODES[""][1]
    iters: int = 10
    aggregate: str = "softmax_sum"
    block: int = 64
    most_recent: int = 4096
    extra_sinks: bool = False
    dense_layers: int = 0
    dense_below: int = CODED
    home: str = "auto"
    seed: int = 4321
    name: ClassVar[str] = "pqcache"
    needs: ClassVar[Needs] = Needs()
    exact_for_multi_token: ClassVar[bool] = True
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"block": 1, "most_recent": 2**31 - 1, "extra_sinks": True},
        "quality": {"m": CODES["quality"][0], "code_bits": CODES["quality"][1], "dense_layers": 2},
    }

    def __post_init__(self) -> None:
        require_share(self, "recent", 0.5)
        require_known(self, "aggregate", AGGREGATES)
        require_known(self, "home", HOMES)
        for option, least, usual in (
            ("sinks", 0, 32),
            ("m", 1, 2),
            ("code_bits", 1, 6),
            ("iters", 0, 10),
            ("block", 1, 64),
            ("most_recent", 0, 4096),
            ("dense_layers", 0, 0),
            ("dense_below", 0, 1024),
            ("seed", 0, 4321),
        ):
            require_least(self, option, least, usual)
        if self.code_bits > 8:
            raise KvchatError(
                "usage", f"pqcache: code_bits={self.code_bits} is above 8", "code_bits=8"
            )

    def entries(self, geometry: Geometry) -> list[int]:
        """All of them. Raises KvchatError("usage") if nothing could be read or coded."""
        self.shares(geometry)
        if geometry.dim % self.m:
            fitting = [f"m={m}" for m in (1, 2, 4, 8, 16) if geometry.dim % m == 0]
            raise KvchatError(
                "usage", f"pqcache: m={self.m} parts of a head of {geometry.dim}", *fitting
            )
        return [geometry.full] * geometry.layers

    @property
    def code(self) -> tuple[int, int]:
        """Parts of a key's code, and bits of a part."""
        return self.m, self.code_bits

    def reads(self, geometry: Geometry) -> list[int]:
        """Entries of the document that a written token reads of each layer, over all its heads."""
        if self._dense(geometry):
            return [geometry.full] * geometry.layers
        found = self.shares(geometry)
        read = geometry.heads * (found.sinks + found.window + found.count)
        dense = min(self.dense_layers, geometry.layers)
        return [geometry.full] * dense + [read] * (geometry.layers - dense)

    def shares(self, geometry: Geometry) -> Reads:
        """How the entries that a token reads of a head are shared out."""
        tokens, sinks = geometry.tokens, self.sinks
        each = self.budget.entries(geometry) // geometry.heads
        if self.extra_sinks:
            sinks = min(sinks, tokens - 1)
            beside = Geometry(**{**vars(geometry), "tokens": tokens - sinks})
            each = self.budget.entries(beside) // geometry.heads
        else:
            sinks = min(sinks, each // 2)
            each -= sinks
        near = Fraction(self.recent).limit_denominator(10**6)
        window = min(int(each * near), self.most_recent)
        count = int(each * (1 - near)) if self.extra_sinks else each - window
        aggregate = AGGREGATES.index(self.aggregate)
        return Reads(sinks, window, count, self.block, aggregate)

    def compress(self, prefilled: Prefilled) -> Segment:
        """All entries but those of the window, coded."""
        if prefilled.layer < self.dense_layers or self._dense(prefilled.geometry):
            return keep_all(prefilled)
        reads = self.shares(prefilled.geometry)
        coded = prefilled.shape[1] - reads.window
        keys, values = prefilled.keys[:, :coded], prefilled.values[:, :coded]
        middle = keys[:, reads.sinks :]
        training = Training(self.m, 2**self.code_bits, self.iters, self.seed)
        centroids = train(middle, training)
        codes = ops.pq_assign(middle, centroids)
        pool = self._pool(keys, values, prefilled.num_layers - prefilled.layer)
        return PQSegment(pool, centroids, codes, reads, prefilled.start)

    def _dense(self, geometry: Geometry) -> bool:
        """Whether there is too little to choose from."""
        reads = self.shares(geometry)
        middle = geometry.tokens - reads.sinks - reads.window
        return middle < max(self.dense_below, 2**self.code_bits) or reads.count >= middle

    def _pool(self, keys: Tensor, values: Tensor, layers: int) -> Tensor:
        """Keys and values `[H, N, D]` side by side, on the device or in pinned host memory.

        `auto`: on the device as long as it has room for the `layers` that are left.
        """
        heads, entries, dim = keys.shape
        device, pinned = keys.device, False
        if device.type == "cuda" and self.home != "device":
            free = torch.cuda.mem_get_info(device)[0]
            pinned = self.home == "host" or free < 2 * keys.nbytes * layers
        place = torch.device("cpu") if pinned else device
        pool = torch.empty(
            heads, entries, 2 * dim, dtype=keys.dtype, device=place, pin_memory=pinned
        )
        pool[..., :dim] = keys
        pool[..., dim:] = values
        return pool
