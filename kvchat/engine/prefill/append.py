"""A document that is read behind others: what was kept of those stays as it is."""

from collections.abc import Generator, Sequence

from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.events import Progress, Smaller
from kvchat.engine.gates import Scorer
from kvchat.engine.methods.base import Method
from kvchat.engine.model.decoder import Decoder
from kvchat.engine.prefill.layout import Behind
from kvchat.engine.prefill.prefill import Compression, prefill
from kvchat.engine.prefill.replay import Replay
from kvchat.engine.prefill.walk import extend


def append(
    model: Decoder,
    cache: KVCache,
    ids: Sequence[int],
    method: Method,
    chunk: int,
    replays: Sequence[Replay] = (),
    gate: Scorer | None = None,
) -> Generator[Progress | Smaller, None, float]:
    """Put `ids` behind a cache's documents, compressed by itself; no turns are there.

    It attends to what is kept of those before. Entries of a cache that keeps all of them slide into
    its segment. The value are the seconds that compressing took. If the consumer stops in between,
    the cache is as it was before.
    """
    if method.retrieves and any(layer.sliding for layer in cache.layers):
        yield from extend(model, cache, ids, chunk)
        return 0.0
    total = cache.position + len(ids)
    behind = Behind(cache, cache.rotary, total)  # it stays where it is read
    given = model, ids, [Compression(method)], cache.layers[0].backend, chunk
    reading = yield from prefill(*given, (), replays, None, gate, behind)
    part = reading.caches[0]
    for layer, new in zip(cache.layers, part.layers, strict=True):
        before = layer.segments
        layer.thaw(total)
        layer.segments, layer.archive = [*before, *new.segments], None
        layer.tail = new.tail
    cache.windows, cache.position = part.windows, total
    return reading.select_seconds
