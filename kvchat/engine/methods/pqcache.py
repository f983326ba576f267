"""PQCache: every entry is kept; codes of the keys say which ones a query has to read."""

from dataclasses import dataclass, replace

from kvchat.engine import ops
from kvchat.engine.budget import Geometry
from kvchat.engine.cache.lookup import Reads
from kvchat.engine.cache.pq import PQSegment
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.kmeans import train
from kvchat.engine.methods.lookup import Lookup
from kvchat.engine.methods.lookup_options import PQCacheOptions
from kvchat.errors import KvchatError


@dataclass(frozen=True)
class PQCache(PQCacheOptions, Lookup):
    """Keeps every entry, and lets a code of each key say which entries a decoded token reads.

    PQCache: Product Quantization-based KVCache for Long Context LLM Inference,
    https://arxiv.org/abs/2407.12820. The budget is what a token reads: `sinks`, a window of the
    newest entries (`recent` of the rest, at most `most_recent` entries) and the entries whose codes
    score best. Codes are `m` parts of `code_bits` bits, trained by K-means. Entries leave the
    window `block` at a time. Questions, several tokens at once, read every entry. Different here:
    the budget pays for the sinks (`extra_sinks=true` does not), K-means has a fixed number of
    iterations on the device that reads, and the first `dense_layers` layers and documents with
    fewer than `dense_below` entries to choose from are read in full.
    """

    segments = PQSegment

    @property
    def least(self) -> int:
        return 1 << self.code_bits

    def entries(self, geometry: Geometry) -> list[int]:
        if geometry.dim % self.m:
            fitting = [f"m={m}" for m in (1, 2, 4, 8, 16) if geometry.dim % m == 0]
            raise KvchatError(
                "usage", f"pqcache: m={self.m} parts of a head of {geometry.dim}", *fitting
            )
        return super().entries(geometry)

    def shares(self, geometry: Geometry) -> Reads:
        if not self.extra_sinks:
            return super().shares(geometry)
        sinks = min(self.sinks, geometry.tokens - 1)
        other = replace(geometry, tokens=geometry.tokens - sinks)
        each = self.budget.entries(other) // geometry.heads
        window = min(int(each * self.near), self.most_recent)
        return self.reads(sinks, window, int(each * (1 - self.near)))

    def index(self, prefilled: Prefilled, coded: int, reads: Reads) -> PQSegment:
        keys, values = prefilled.keys[:, :coded], prefilled.values[:, :coded]
        middle = keys[:, reads.sinks :]
        how = self.iters, self.seed, prefilled.peers
        centroids = train(middle, self.m, 2**self.code_bits, *how)
        pool = self.stored_at_home(prefilled, keys, values)
        return PQSegment(pool, centroids, ops.pq_assign(middle, centroids), reads, prefilled.start)
