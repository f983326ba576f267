"""Prefill: token ids walk the layers, one layer at a time. Here models and methods meet."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from time import perf_counter

import torch
from torch import Tensor

from kvchat.engine.attention.entries import Backend
from kvchat.engine.budget import Geometry
from kvchat.engine.cache.archive import Exact
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.layer import LayerCache
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
from kvchat.engine.prefill.layout import Behind, Moves
from kvchat.engine.prefill.observation import Observation, column_mass, moments
from kvchat.engine.prefill.replay import Replay, Retelling, bare_replays
from kvchat.engine.prefill.walk import (
    AnyLayer,
    Pace,
    empty_cache,
    retell,
    rotations_at,
    step,
    walk,
)


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
    behind: Behind | None = None,
) -> Generator[Progress | Smaller, None, Prefill]:
    """Prefill one new cache per compression with `ids`; the generator's value is a `Prefill`.

    Layer-major and exact: for each layer all chunks attend to the layer's dense keys and values,
    every compression takes from them what it keeps, and they are freed before the next layer.
    Alive at any time: the weights, the hidden states `[T, hidden]` once, one layer's dense K/V,
    and what is kept. Probes are token lists that follow the document, each by itself: they walk
    the layers beside it, are observed, and leave no trace. So do replays, for methods that need
    them (for a kind that is not given, the bare text); they count in the progress. `archiving`
    is given all entries of every layer. A `gate` tells what entries are worth before they are
    there, for methods that need that. A part of a document stands `behind` those before it; the
    caches have the part alone.
    Raises KvchatError("usage") before anything is computed if a budget cannot be met.
    """
    config, device = model.config, model.device
    tokens, layers, full = len(ids), config.num_layers, config.full_layers
    heads, dim = config.num_kv_heads, config.head_dim
    every = model.whole.num_kv_heads
    geometry = Geometry(tokens, every, len(full), dim, model.dtype.itemsize)
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
    start, rotary = (behind.cache.position, behind.cache.rotary) if behind else (0, 0)
    moves = Moves(model, behind, tokens) if behind else None
    caches = [empty_cache(model, backend, start) for _ in compressions]
    # the document's last queries matter to those only who do not score with a probe's
    window = max((c.method.needs.queries for c in compressions if not c.probes), default=0)
    own = replace(asked, queries=window)
    if archiving is not None:
        own |= archiving.needs
    coming = rotations_at(model, moves.end if moves else tokens, asked.future)
    scoring = {probe for compression in compressions for probe in compression.probes}
    room = tokens + max(map(len, asides), default=0)
    pace = Pace(chunk, fixed=model.peers.count > 1)
    pools = [Pool(c.method, k.layers, geometry) for c, k in zip(compressions, caches, strict=True)]
    kept = done = 0
    select = 0.0
    for number, block in model.held():
        kind, recent = block.kind, Observation(own)
        tail = Tail(heads, dim, x.dtype, device)
        layer: AnyLayer
        if kind.window:
            layer = WindowLayer(tail, kind.window, backend)
            tail.reserve(room + max(map(len, repeats), default=0))
        else:
            layer = LayerCache(tail, backend, recent)
            tail.reserve(room)
        before = behind.under(layer, number, full) if behind else 0

        def turns(a: int, b: int, rope: int = kind.rope) -> Rotation:
            return rotations_at(model, rotary + a, b - a)[rope]

        scores = {}
        if own.gate and not kind.window:
            assert gate is not None, "the engine has refused the method without a gate"
            left = behind.left(tokens) if behind else 0
            worth = _gated(gate, full.index(number), block, x, chunk, left)
            scores[GATE] = model.peers.own(worth)
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
            tail.truncate(before + tokens)
        retelling = Retelling(asked, layer, backend)
        for replay, repeat in zip(told, repeats, strict=True):
            rotation = _places(model, rotary + tokens, replay)[kind.rope]
            yield from retell(retelling, block, repeat, rotation, replay, pace)
            done += len(repeat)
            if done * layers < total * (number + 1):
                yield Progress(number, layers, done, total, kept)
        if moves:
            moves.move(layer, kind.rope, recent, observed)
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
        cache.position = start + tokens
        cache.saved = cache.position - moves.end if moves else 0
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
        start=tail.span[0],
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
        features=block.features,
        cap=layer.backend.cap,
        asked=bool(probes),
        peers=block.self_attn.peers,
    )


def _gated(gate: Scorer, layer: int, block: Block, x: Tensor, chunk: int, left: int = 0) -> Tensor:
    """What a gate makes of the inputs `x [T, hidden]` of a layer, `[H, T]`; `left` tokens of the
    document follow them."""
    parts, after = [], len(x) + left
    for part in torch.split(x, chunk):
        after -= len(part)
        parts.append(gate.scores(layer, block.input_layernorm(part), after))
    return torch.cat(parts, dim=1)


def _places(model: Decoder, tokens: int, replay: Replay) -> list[Rotation]:
    """The rotations of a replay's lists: each of them follows `tokens` tokens."""
    places = [torch.arange(tokens, tokens + length) for length in replay.lengths]
    return model.rotations(torch.cat(places).to(model.device))
