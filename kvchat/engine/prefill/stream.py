"""Prefill of a document that is longer than the context window, part by part.

A part is read behind what was kept of those before it, as a document is, and compressed by the
method; then its entries move, so that parts overlap (`layout`). So the time grows with the length,
no longer with its square, and only one part's hidden states are alive.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace
from math import ceil

from kvchat.engine.attention.entries import Backend
from kvchat.engine.budget import Budget, Geometry
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.low_rank import LowRankSegment, joined
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.events import Progress, Smaller
from kvchat.engine.gates import Scorer
from kvchat.engine.methods.base import Method, Prefilled
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.specs import name_of
from kvchat.engine.model.decoder import Decoder
from kvchat.engine.peers import Peers
from kvchat.engine.prefill.global_budget import Pool
from kvchat.engine.prefill.layout import Behind
from kvchat.engine.prefill.prefill import Compression, Prefill, prefill
from kvchat.engine.prefill.replay import Replay
from kvchat.engine.prefill.walk import empty_cache
from kvchat.engine.sizes import Streamed
from kvchat.errors import KvchatError

JOINED = "", "quantized", "pq", "keys"  # kinds of segments that parts can become


def stream(
    model: Decoder,
    ids: Sequence[int],
    compression: Compression,
    backend: Backend,
    chunk: int,
    streamed: Streamed,
    probes: Sequence[Sequence[int]] = (),
    replays: Sequence[Sequence[Replay]] = (),
    gate: Scorer | None = None,
) -> Generator[Progress | Smaller, None, Prefill]:
    """Prefill a new cache with `ids`, read part by part as `streamed` says.

    `replays` are those of every part, if there are any; otherwise as `prefill.prefill`, which reads
    each part. A method that keeps every entry is applied at the end. Its value has one cache.
    """
    method, config = compression.method, model.config
    heads, layers = model.whole.num_kv_heads, len(config.full_layers)
    geometry = Geometry(len(ids), heads, layers, config.head_dim, model.dtype.itemsize)
    cache, select = empty_cache(model, backend), 0.0
    for number, (a, b) in enumerate(streamed.parts):
        part, own = ids[a:b], replace(compression, method=of_part(method, geometry, a, b))
        told = replays[number] if replays else ()
        given = model, part, [own], backend, chunk, probes, told, None, gate
        steps = prefill(*given, Behind(cache, streamed.starts[number], len(ids)))
        held = sum(layer.kept_bytes for layer in cache.layers)
        reading = yield from _shifted(steps, a, b, len(ids), held)
        join(cache, reading.caches[0])
        select += reading.select_seconds
    if method.retrieves:
        cache = _applied(method, cache, empty_cache(model, backend), geometry, model.peers)
    for layer in cache.layers:
        layer.segments = [method.stored(segment) for segment in layer.segments]
    return Prefill([cache], reading.logits, select, reading.asides)


def of_part(method: Method, geometry: Geometry, start: int, end: int) -> Method:
    """A method with the budget for tokens `start` to `end` of the document's.

    Sinks are the first part's affair, bits are for all parts together, later, and there are no
    means of what is evicted: where parts overlap, they draw attention from what is kept.

    Raises KvchatError("usage") if the budget cannot be met, for the document or for a part.
    """
    method.entries(geometry)
    if method.kind not in JOINED and method.needs:
        raise KvchatError(
            "usage",
            f"{name_of(method)} looks at the document's last queries, which are not kept of one "
            "that is read part by part",
            "--method kvzip",
            "--method pqcache",
        )
    if method.retrieves or isinstance(method, Full):
        return Full()
    budget, tokens = method.budget, end - start
    if budget.fraction is None:
        kept = budget.entries(method.priced(geometry)) / geometry.full
        budget = Budget(entries_per_head=max(1, round(kept * tokens)))
    found: Method = replace(method, budget=budget, bits=16)  # type: ignore[type-var]
    if method.means:
        found = replace(found, means=0)  # type: ignore[type-var]
    if start and hasattr(found, "sinks"):
        found = replace(found, sinks=0)  # type: ignore[type-var]
    try:
        found.entries(replace(geometry, tokens=tokens))
    except KvchatError as error:
        least = ceil(error.details.get("needed", 1) * geometry.tokens / tokens)
        raise KvchatError(
            "usage",
            f"{error.message}: the document is read {tokens:,} tokens at a time, and a part has "
            "its share of the budget",
            f"--budget {least}",
            needed=least,
        ) from None
    return found


def join(cache: KVCache, part: KVCache) -> None:
    """Put what was kept of a part behind what was kept before it."""
    for layer, new in zip(cache.layers, part.layers, strict=True):
        (segment,) = new.segments
        before = layer.segments[0] if layer.segments else None
        assert isinstance(segment, FlatSegment | LowRankSegment), segment.kind
        assert before is None or isinstance(before, FlatSegment | LowRankSegment)
        layer.thaw(segment.span[1])
        layer.segments = [segment if before is None else joined(before, segment)]
    cache.windows, cache.position, cache.saved = part.windows, part.position, part.saved


def _applied(
    method: Method, full: KVCache, new: KVCache, geometry: Geometry, peers: Peers
) -> KVCache:
    """The cache of a method that keeps every entry, which are all in a `full` one."""
    pool, new.windows = Pool(method, new.layers, geometry), full.windows
    for number, layer in enumerate(full.layers):
        (segment,) = layer.segments
        assert isinstance(segment, FlatSegment), segment.kind
        keys, values = (
            each.view(len(segment.lengths), geometry.tokens, geometry.dim)
            for each in (segment.k, segment.v)
        )
        none, layer.segments = keys.new_empty(0), []
        given = Prefilled(
            keys=keys,
            values=values,
            queries=none,
            lse=none,
            seen=none.long(),
            scale=geometry.dim**-0.5,
            layer=number,
            num_layers=geometry.layers,
            peers=peers,
        )
        pool.take(given)
    new.position, new.saved = full.position, full.saved
    return new


def _shifted(
    steps: Generator[Progress | Smaller, None, Prefill], a: int, b: int, tokens: int, held: int
) -> Generator[Progress | Smaller, None, Prefill]:
    """The steps of reading tokens `a` to `b` as such of the whole, in front of `held` bytes."""
    while True:
        try:
            item = next(steps)
        except StopIteration as end:
            found: Prefill = end.value
            return found
        if isinstance(item, Progress):
            done = item.layers * a + round(item.layers * (b - a) * item.done / item.total)
            item = replace(
                item, done=done, total=item.layers * tokens, kv_bytes=item.kv_bytes + held
            )
        yield item
