"""Prefill: token ids walk the layers, one layer at a time. Here models and methods meet."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from time import perf_counter

import torch
from torch import Tensor

from kvchat.engine.attention.entries import Backend
from kvchat.engine.budget import Geometry
from kvchat.engine.cache.archive import Exact
from kvchat.engine.cache.layer import KVCache, LayerCache
from kvchat.engine.cache.tail import Tail
from kvchat.engine.cache.window import WindowLayer
from kvchat.engine.events import Progress, Smaller
from kvchat.engine.gates import Scorer
from kvchat.engine.methods.base import Method, Prefilled
from kvchat.engine.methods.needs import GATE, Needs, ReplayScore
from kvchat.engine.model.decoder import Decoder
from kvchat.engine.model.layers import Block, Rotation
from kvchat.engine.prefill.archive_writer import Archiving, recorded
from kvchat.engine.prefill.global_budget import Pool
from kvchat.engine.prefill.observation import Observation, column_mass, moments
from kvchat.engine.prefill.replay import Replay, Retelling, bare_replays
from kvchat.errors import is_out_of_memory

AnyLayer = LayerCache | WindowLayer
Around = Callable[[int, Block, AnyLayer], AbstractContextManager[None]]


@dataclass(frozen=True)
class Compression:
    """One cache to make from a prefill: a method, and what it may observe.

    `probes` are numbers of probes whose queries the method scores with; empty means the last
    queries of the document.
    """

    method: Method
    probes: tuple[int, ...] = ()


@dataclass
class Prefill:
    """What a prefill leaves: one cache per compression, the last token's logits `[vocab]`, the
    seconds that compressing took, and the final hidden states `[t, hidden]` of every probe."""

    caches: list[KVCache]
    logits: Tensor
    select_seconds: float
    asides: list[Tensor]


def rotations_at(model: Decoder, start: int, count: int) -> list[Rotation]:
    """Of the `count` positions from `start` on, for each of the config's ropes."""
    return model.rotations(torch.arange(start, start + count, device=model.device))


def empty_cache(model: Decoder, backend: Backend) -> KVCache:
    """A cache of the model that has seen nothing."""
    config = model.config
    windows = {n: kind.window for n, kind in enumerate(config.layers) if kind.window}
    return KVCache.empty(
        len(config.full_layers),
        config.num_kv_heads,
        config.head_dim,
        model.dtype,
        model.device,
        backend,
        windows,
    )


def step(block: Block, layer: AnyLayer, x: Tensor, rotation: Rotation) -> Tensor:
    """Run hidden states `x [T, hidden]` of the newest tokens through one block and its cache."""
    q, k, v = block.project(x, rotation)
    scale = q.shape[-1] ** -0.5
    layer.tail.append(k, v)
    o, lse = layer.attend(q, scale)
    if isinstance(layer, LayerCache):
        for observer in layer.observers:
            observer.see(q, lse, layer, scale, rotation.cos, rotation.sin)
    return block.finish(x, o)


@dataclass
class Pace:
    """Tokens that walk a layer at once; halved one time if memory does not suffice."""

    chunk: int
    halved: bool = False

    def slow(self, error: Exception) -> Smaller:
        """Halve the chunk; raises `error` if it is something else or if that was done before."""
        if self.halved or self.chunk < 2 or not is_out_of_memory(error):
            raise error
        self.chunk, self.halved = self.chunk // 2, True
        return Smaller(self.chunk)


def walk(
    block: Block,
    layer: AnyLayer,
    x: Tensor,
    rotation: Callable[[int, int], Rotation],
    pace: Pace,
) -> Generator[int | Smaller, None, None]:
    """Run `x [T, hidden]` of the newest tokens through one block, chunk by chunk, in place.

    `rotation(a, b)` is that of entries `a` to `b`. Yields the tokens of each chunk that is done.
    """
    a = 0
    while a < len(x):
        b = min(a + pace.chunk, len(x))
        if b == len(x) - 1 and pace.chunk > 1 and layer.sliding is not None:
            b = len(x)  # a lone last token would read what a written one reads
        entries = layer.tail.length
        observed = [vars(observer).copy() for observer in layer.observers]
        try:
            x[a:b] = step(block, layer, x[a:b], rotation(a, b))
        except Exception as error:
            smaller = pace.slow(error)
        else:
            observed.clear()  # or it would stay alive beside its successor
            yield b - a
            a = b
            continue
        # outside of the handler, so that the failed chunk's tensors are free
        layer.tail.truncate(entries)
        for observer, before in zip(layer.observers, observed, strict=True):
            vars(observer).update(before)
        if x.is_cuda:
            torch.cuda.empty_cache()
        yield smaller


def retell(
    retelling: Retelling, block: Block, x: Tensor, rotation: Rotation, replay: Replay, pace: Pace
) -> Generator[Smaller, None, None]:
    """Run the hidden states `x` of a replay through one block, in place: at once, or slower."""
    while True:
        step = pace.chunk if pace.halved else len(x)
        try:
            x[:] = retelling.tell(block, x, rotation, replay, step)
            return
        except Exception as error:
            smaller = pace.slow(error)
        if x.is_cuda:  # outside of the handler, as above
            torch.cuda.empty_cache()
        yield smaller


def extend(
    model: Decoder,
    cache: KVCache,
    ids: Sequence[int],
    chunk: int,
    around: Around = lambda *_: nullcontext(),
) -> Generator[Progress | Smaller, None, Tensor]:
    """Append `ids` to the cache's tail, layer by layer, each inside of its `around`.

    The generator's value is their final hidden states `[T, hidden]`. If the consumer stops in
    between, the cache is as it was before.
    """
    before, total = cache.position, len(ids) * model.config.num_layers
    x = model.embed(torch.tensor(ids, device=model.device))  # [T, hidden]
    every, layers = rotations_at(model, before, len(ids)), cache.walked
    pace, done = Pace(chunk), 0
    try:
        for number, (block, layer) in enumerate(zip(model.blocks, layers, strict=True)):
            with around(number, block, layer):
                for item in walk(block, layer, x, every[block.kind.rope].part, pace):
                    if isinstance(item, Smaller):
                        yield item
                        continue
                    done += item
                    yield Progress(number, len(layers), done, total, 0)
    except BaseException:
        for layer in layers:
            layer.tail.truncate(before - layer.tail.start)
        raise
    cache.advance(len(ids))
    return x


def prefill(
    model: Decoder,
    ids: Sequence[int],
    compressions: Sequence[Compression],
    backend: Backend,
    chunk: int,
    probes: Sequence[Sequence[int]] = (),
    replays: Sequence[Replay] = (),
    archiving: Archiving | None = None,
    gate: Scorer | None = None,
) -> Generator[Progress | Smaller, None, Prefill]:
    """Prefill one new cache per compression with `ids`; the generator's value is a `Prefill`.

    Layer-major and exact: for each layer all chunks attend to the layer's dense keys and values,
    every compression takes from them what it keeps, and they are freed before the next layer.
    Alive at any time: the weights, the hidden states `[T, hidden]` once, one layer's dense K/V,
    and what is kept. Probes are token lists that follow the document, each by itself: they walk
    the layers beside it, are observed, and leave no trace. So do replays, for methods that need
    them (for a kind that is not given, the bare text); they count in the progress. `archiving`
    is given all entries of every layer. A `gate` tells what entries are worth before they are
    there, for methods that need that.
    Raises KvchatError("usage") before anything is computed if a budget cannot be met.
    """
    config, device = model.config, model.device
    tokens, layers, full = len(ids), config.num_layers, config.full_layers
    heads, dim = config.num_kv_heads, config.head_dim
    geometry = Geometry(tokens, heads, len(full), dim, model.dtype.itemsize)
    for compression in compressions:
        compression.method.entries(geometry)  # a budget that cannot be met is refused now
    asked = reduce(or_, (c.method.needs for c in compressions), Needs())
    x = model.embed(torch.tensor(ids, device=device))  # [T, hidden]
    asides = [model.embed(torch.tensor(probe, device=device)) for probe in probes]
    missing = asked.kinds - {replay.kind for replay in replays}
    told = [*replays, *bare_replays(ids, missing)] if asked.kinds else []
    repeats = [model.embed(torch.tensor(replay.ids, device=device)) for replay in told]
    told_tokens = sum(map(len, repeats))
    total = layers * (tokens + told_tokens)
    caches = [empty_cache(model, backend) for _ in compressions]
    # the document's last queries matter to those only who do not score with a probe's
    window = max((c.method.needs.queries for c in compressions if not c.probes), default=0)
    own = replace(asked, queries=window)
    if archiving is not None:
        own |= archiving.needs
    coming = rotations_at(model, tokens, asked.future)
    scoring = {probe for compression in compressions for probe in compression.probes}
    room = tokens + max(map(len, asides), default=0)
    pace = Pace(chunk)
    pools = [Pool(c.method, k.layers, geometry) for c, k in zip(compressions, caches, strict=True)]
    kept = done = 0
    select = 0.0
    for number, block in enumerate(model.blocks):
        kind, recent = block.kind, Observation(own)
        tail = Tail(heads, dim, x.dtype, device)
        tail.reserve(room if not kind.window else room + max(map(len, repeats), default=0))
        layer: AnyLayer = (
            WindowLayer(tail, kind.window, backend)
            if kind.window
            else LayerCache(tail, backend, recent)
        )

        def turns(a: int, b: int, rope: int = kind.rope) -> Rotation:
            return rotations_at(model, a, b - a)[rope]

        scores = {}
        if own.gate and not kind.window:
            assert gate is not None, "the engine has refused the method without a gate"
            scores[GATE] = _gated(gate, full.index(number), block, x, chunk)
        for item in walk(block, layer, x, turns, pace):
            if isinstance(item, Smaller):
                yield item
                continue
            done += item
            if done * layers < total * (number + 1):
                yield Progress(number, layers, done, total, kept)
        observed = []
        for which, aside in enumerate(asides):
            observed.append(Observation(asked))
            if isinstance(layer, LayerCache):
                layer.observer = observed[-1] if which in scoring else None
            aside[:] = step(block, layer, aside, turns(tokens, tokens + len(aside)))
            tail.truncate(tokens)
        retelling = Retelling(asked, layer, backend)
        for replay, repeat in zip(told, repeats, strict=True):
            rotation = _places(model, tokens, replay)[kind.rope]
            yield from retell(retelling, block, repeat, rotation, replay, pace)
            done += len(repeat)
            if done * layers < total * (number + 1):
                yield Progress(number, layers, done, total, kept)
        if isinstance(layer, WindowLayer):
            for cache in caches:
                cache.windows[number].take(tail)
            yield Progress(number, layers, done, total, kept)
            continue
        begin = perf_counter()
        place = full.index(number), len(full)
        scores |= retelling.told()
        for pool, compression in zip(pools, compressions, strict=True):
            probed = [observed[p] for p in compression.probes]
            needs = compression.method.needs
            future = coming[kind.rope]
            pool.take(prefilled(layer, tail, recent, probed, scores, needs, future, block, place))
        kept = sum(layer.kept_bytes for cache in caches for layer in cache.layers)
        select += perf_counter() - begin
        if archiving is not None:
            archiving.keep(place[0], tail.keys, tail.values, recorded(recent.tensors(), scores))
        del tail, layer, retelling, scores  # this layer's dense K/V is free before anyone looks
        yield Progress(number, layers, done, total, kept)
    begin = perf_counter()
    for cache, pool in zip(caches, pools, strict=True):
        cache.position = tokens
        pool.finish()
    select += perf_counter() - begin
    if archiving is not None:
        for cache in caches:
            for layer, archive in zip(cache.layers, archiving.archives(), strict=False):
                layer.archive = archive
    return Prefill(caches, model.logits(x[-1:])[0], select, asides)


def prefilled(
    layer: LayerCache,
    tail: Tail | Exact,
    document: Observation,
    probes: list[Observation],
    told: Mapping[ReplayScore, Tensor],
    needs: Needs,
    coming: Rotation,
    block: Block,
    place: tuple[int, int],
) -> Prefilled:
    """The dense layer as a method sees it, with what it observes.

    `place` is its number among the layers that are compressed, and theirs.
    """
    keys = tail.keys
    last = slice(-needs.queries, None) if needs.queries else slice(0)
    windows = [part.window for part in (probes or [document]) if part.window is not None]
    queries = [q[last] for q, _ in windows]
    lses = [lse[last] for _, lse in windows]
    seen = torch.full((sum(map(len, queries)),), tail.length, device=keys.device)
    if not probes:  # the document's own queries see nothing later than themselves
        seen -= torch.arange(len(seen), device=keys.device).flip(0)
    empty = keys.new_empty(0)
    return Prefilled(
        keys=keys,
        values=tail.values,
        queries=torch.cat(queries) if queries else empty,
        lse=torch.cat(lses) if lses else empty,
        seen=seen,
        scale=keys.shape[-1] ** -0.5,
        layer=place[0],
        num_layers=place[1],
        column_mass=column_mass([document, *probes], tail.length) if needs.column_mass else None,
        moments=moments([document, *probes], coming, needs.future) if needs.future else None,
        told=told,
        output=block.output(keys.dtype),
        cap=layer.backend.cap,
        asked=bool(probes),
    )


def _gated(gate: Scorer, layer: int, block: Block, x: Tensor, chunk: int) -> Tensor:
    """What a gate makes of the inputs `x [T, hidden]` of a layer, `[H, T]`."""
    parts, after = [], len(x)
    for part in torch.split(x, chunk):
        after -= len(part)
        parts.append(gate.scores(layer, block.input_layernorm(part), after))
    return torch.cat(parts, dim=1)


def _places(model: Decoder, tokens: int, replay: Replay) -> list[Rotation]:
    """The rotations of a replay's lists: each of them follows `tokens` tokens."""
    places = [torch.arange(tokens, tokens + length) for length in replay.lengths]
    return model.rotations(torch.cat(places).to(model.device))
