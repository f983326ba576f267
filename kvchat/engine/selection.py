"""Choosing again what is kept of a document, from an archive of all its entries: when a question
comes, or for another method or budget. No prefill is repeated.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

from torch import Tensor

from kvchat.engine.budget import Geometry
from kvchat.engine.cache.archive import Archive, Exact
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.cache.window import WindowLayer
from kvchat.engine.events import Progress, Smaller
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.needs import Needs
from kvchat.engine.model.decoder import Decoder
from kvchat.engine.model.layers import Block
from kvchat.engine.prefill.archive_writer import holds, shown
from kvchat.engine.prefill.global_budget import Pool
from kvchat.engine.prefill.observation import Observation
from kvchat.engine.prefill.prefill import prefilled
from kvchat.engine.prefill.walk import AnyLayer, extend, rotations_at


def can_choose(cache: KVCache, method: Method) -> bool:
    """Whether the archives of a cache have all that a method wants to be shown."""
    layer = cache.layers[0]
    if layer.archive is None:
        return False
    tokens = layer.archive.keys.shape[1]
    covers = not layer.segments or layer.segments[0].span == (0, tokens)
    if method.retrieves and len(layer.segments) > 1:
        return False  # its window would stand behind compressed turns
    return covers and holds(layer.archive.observed, method.needs, tokens)


def is_asked(method: Method) -> bool:
    """Whether a method chooses by queries, so that a question makes a difference."""
    return bool(method.needs.queries)


class Selection:
    """What a method keeps of an archived document: taken layer by layer, applied at the end."""

    def __init__(self, model: Decoder, cache: KVCache, method: Method):
        assert can_choose(cache, method), "an archive has what the method needs"
        self.cache, self.method = cache, method
        self.seconds = 0.0  # that compressing took
        keys = _archive(cache.layers[0]).keys
        heads, self.tokens, dim = keys.shape
        layers, tail = len(cache.layers), cache.layers[0].tail.k
        every = heads * model.peers.count
        geometry = Geometry(self.tokens, every, layers, dim, keys.element_size())
        backend = cache.layers[0].backend
        self._new = KVCache.empty(layers, heads, dim, keys.dtype, tail.device, backend)
        self._pool = Pool(method, self._new.layers, geometry)
        self._coming = rotations_at(model, self.tokens, method.needs.future)

    def take(
        self,
        number: int,
        block: Block,
        layer: LayerCache,
        exact: Exact,
        questions: Sequence[Observation] = (),
    ) -> None:
        """Let the method choose among a layer's entries: by questions, or as at the prefill."""
        begin, needs = perf_counter(), self.method.needs
        record, device = _archive(layer).observed, exact.keys.device
        document = Observation.of(needs, record, device)
        place = number, len(self.cache.layers)
        told, coming = shown(record, device), self._coming[block.kind.rope]
        seen = list(questions)
        given = prefilled(layer, exact, document, seen, told, needs, coming, block, place)
        self._pool.take(given)
        self.seconds += perf_counter() - begin

    def apply(self) -> None:
        """Put the new segments in the place of the document's old ones, if there are any."""
        self._pool.finish()
        for layer, new in zip(self.cache.layers, self._new.layers, strict=True):
            (segment,) = new.segments
            put = layer.replace if layer.segments else layer.adopt
            put(segment, new.tail.keys, new.tail.values)
        self.cache.position = max(self.cache.position, self.tokens)
        for layer in self.cache.layers:
            layer.settle(self.cache.position)
            if _archive(layer).shared:
                layer.archive = None  # or what was evicted would stay in memory


def choose(model: Decoder, cache: KVCache, method: Method) -> float:
    """Choose again as at the prefill, with another method or budget. Returns the seconds it took.

    The conversation's entries stay as they are.
    """
    begin, selection = perf_counter(), Selection(model, cache, method)
    for number, (block, layer) in enumerate(zip(model.full_blocks, cache.layers, strict=True)):
        selection.take(number, block, layer, _archive(layer).on(layer.tail.k.device))
    selection.apply()
    return perf_counter() - begin


def archived(cache: KVCache, archives: Sequence[Archive], method: Method) -> KVCache | None:
    """An empty cache with the archives of a document, for a method to choose from.

    None if they do not hold what the method wants to be shown, or if the model has sliding layers:
    archives do not have their windows.
    """
    if cache.windows:
        return None
    for layer, archive in zip(cache.layers, archives, strict=True):
        layer.archive = archive
    return cache if can_choose(cache, method) else None


def extend_choosing(
    model: Decoder, cache: KVCache, ids: Sequence[int], chunk: int, method: Method
) -> Generator[Progress | Smaller, None, tuple[Tensor, float]]:
    """Append a question's `ids`, which attend to all entries of the document; then keep what their
    queries want.

    Each layer's archive is gone through once. The generator's value are the final hidden states
    `[T, hidden]` and the seconds that choosing took. If the consumer stops in between, the cache
    is as it was before.
    """
    selection = Selection(model, cache, method)

    @contextmanager
    def opened(number: int, block: Block, layer: AnyLayer) -> Iterator[None]:
        if isinstance(layer, WindowLayer):
            yield
            return
        layer.exact = _archive(layer).on(layer.tail.k.device)
        question = Observation(Needs(queries=method.needs.queries))
        layer.asking = question
        try:
            yield
            place = model.config.full_layers.index(number)
            selection.take(place, block, layer, layer.exact, [question])
        finally:
            layer.exact = layer.asking = None

    x = yield from extend(model, cache, ids, chunk, opened)
    selection.apply()
    return x, selection.seconds


def _archive(layer: LayerCache) -> Archive:
    assert layer.archive is not None
    return layer.archive
