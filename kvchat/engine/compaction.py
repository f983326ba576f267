"""Compaction: the oldest turns of a long conversation become one compressed segment.

It takes the entries of these turns out of every layer's tail, joins what was kept of the turns
before them, and lets the method choose among all of it.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from kvchat.engine.budget import Budget, Geometry
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.cache.segment import FlatSegment, Segment
from kvchat.engine.methods.base import Method, Prefilled
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.specs import name_of
from kvchat.engine.model.decoder import Decoder
from kvchat.engine.model.layers import Block
from kvchat.engine.prefill.layout import turned
from kvchat.engine.prefill.observation import Observation, moments
from kvchat.errors import KvchatError


def folding(method: Method, budget: int) -> Method:
    """The method that compresses a conversation which may hold `budget` entries per KV head.

    Half of them are the live tail's, half the compressed turns', whose entries keep the model's
    precision whatever the document's have. Raises KvchatError("usage") if the method cannot.
    """
    if method.retrieves or isinstance(method, Full):
        raise KvchatError(
            "usage",
            f"{name_of(method)} keeps every entry, so it compresses no turns",
            "--method adakv",
            "no --tail-budget, no --tail",
        )
    half = Budget(entries_per_head=max(1, budget // 2))
    folded: Method = replace(method, budget=half, bits=16)  # type: ignore[type-var]
    try:  # what the budget cannot hold shows on a conversation of any length
        folded.entries(Geometry(tokens=2**20, heads=1, layers=1, dim=2, itemsize=2))
    except KvchatError as error:
        least = 2 * error.details.get("needed", 1)
        raise KvchatError(
            "usage",
            f"--tail-budget {budget} leaves {budget // 2} entries per head for old turns; "
            f"{name_of(method)} needs {least // 2}",
            f"--tail-budget {least}",
            entries=budget // 2,
            needed=least // 2,
        ) from None
    return folded


class Level(NamedTuple):
    """Entries of each KV head that were chosen from so many tokens each: of those from `first` to
    `last` of the conversation."""

    entries: int
    each: int
    first: int
    last: int

    def __str__(self) -> str:
        share = "every token" if self.each == 1 else f"one of {self.each} tokens"
        return f"{self.entries:,} entries: {share} from {self.first:,} to {self.last:,} of the chat"


def levels_of(segment: Segment, start: int) -> list[Level]:
    """The levels of a cascade, by its first head; the conversation begins at `start`."""
    assert isinstance(segment, FlatSegment) and segment.count is not None, segment.kind
    own = segment.lengths[0]
    counts, places = segment.count[:own].tolist(), (segment.position[:own] - start).tolist()
    found = []
    for each, level in groupby(zip(counts, places, strict=True), key=lambda pair: pair[0]):
        at = [place for _, place in level]
        found.append(Level(len(at), each, at[0] + 1, at[-1] + 1))
    return found


def watch(cache: KVCache, method: Method, since: int) -> None:
    """Let every layer of a cache gather what `method` needs, from position `since` on."""
    needs = method.watches
    for layer in cache.layers:
        layer.observer = Observation(needs, since) if needs else None


def fold(model: Decoder, cache: KVCache, method: Method, since: int, end: int) -> None:
    """Compress what stands between positions `since` and `end`, in every layer.

    The entries are those of segments that begin at `since` and the tail's up to `end`. Where the
    method gathers, those that stay move together, and what follows them moves along. Nothing has
    changed if this fails.
    """
    segments, gone = [], 0
    for number, (block, layer) in enumerate(zip(model.full_blocks, cache.layers, strict=True)):
        given = union(layer, since, end, block, model, (number, len(cache.layers)))
        segment = method.extend(given)
        mass = _carried(given, segment)
        if method.gathers:
            gone = given.shape[1] - segment.lengths[0]
            segment = gathered(model, block, given, segment)
        segments.append((segment, mass))
    for layer, (segment, mass) in zip(cache.layers, segments, strict=True):
        entries = end - layer.tail.start
        layer.freeze(segment)
        if (seen := _observation(layer)) is not None and seen.mass is not None:
            seen.mass, seen.frozen_mass = seen.mass[:, entries:], mass
    for window in cache.windows.values():
        window.compact(since, end)
    if gone:
        move(model, cache, -gone)


def gathered(model: Decoder, block: Block, given: Prefilled, segment: Segment) -> Segment:
    """A segment of entries of `given`, which stood one after the other, so that they do again.

    All heads have equally many.
    """
    assert isinstance(segment, FlatSegment) and given.position is not None, segment.kind
    heads, number = len(segment.lengths), segment.lengths[0]
    before = torch.searchsorted(given.position, segment.position.view(heads, number))
    after = torch.arange(number, device=before.device)
    turn = model.rotations((after - before).flatten())[block.kind.rope]
    return replace(segment, k=turned(segment.k[:, None], turn)[:, 0])


def move(model: Decoder, cache: KVCache, by: int) -> None:
    """Move the entries of all tails, and every token after them, by so many positions."""
    turns = model.rotations(torch.tensor([by], device=model.device))
    for block, layer in zip(model.blocks, cache.walked, strict=True):
        keys = layer.tail.keys
        keys.copy_(turned(keys.transpose(0, 1), turns[block.kind.rope]).transpose(0, 1))
    cache.saved -= by


def union(
    layer: LayerCache, since: int, end: int, block: Block, model: Decoder, place: tuple[int, int]
) -> Prefilled:
    """The entries to compact of one layer, old ones first; `place` is its number of all.

    Heads that kept fewer entries begin with entries that do not exist.
    """
    tail, new = layer.tail, end - layer.tail.start
    old = _flat(layer.since(since))
    heads, _, dim = tail.keys.shape
    lengths = old.lengths if old else (0,) * heads
    most = int(model.peers.joined(torch.tensor(lengths)).max())  # of any head
    entries = most + new
    keys, values = tail.keys.new_zeros(2, heads, entries, dim)
    position = torch.full((heads, entries), -1, dtype=torch.int32, device=keys.device)
    count = torch.ones_like(position)
    seen = _observation(layer)
    mass = None
    if seen is not None and seen.mass is not None:
        mass = torch.zeros(heads, entries, device=keys.device)
        mass[:, entries - new :] = seen.mass[:, :new]
    for head, length in enumerate(lengths):
        if old is None:
            break
        here, there = (
            slice(entries - new - length, entries - new),
            slice(*old.ends[head : head + 2]),
        )
        keys[head, here], values[head, here] = old.k[there], old.v[there]
        position[head, here] = old.position[there]
        if old.count is not None:
            count[head, here] = old.count[there]
        if mass is not None and seen is not None and seen.frozen_mass is not None:
            mass[head, here] = seen.frozen_mass[there]
    keys[:, entries - new :], values[:, entries - new :] = tail.keys[:, :new], tail.values[:, :new]
    position[:, entries - new :] = torch.arange(tail.start, end, device=keys.device)
    queries, lse, visible = _window(seen, end, entries, keys)
    expected = None
    if seen is not None and (future := seen.needs.future):
        after = tail.start + tail.length
        coming = model.rotations(torch.arange(after, after + future, device=keys.device))
        expected = moments([seen], coming[block.kind.rope], future)
    return Prefilled(
        keys=keys,
        values=values,
        queries=queries,
        lse=lse,
        seen=visible,
        scale=dim**-0.5,
        layer=place[0],
        num_layers=place[1],
        start=since,
        end=end,
        column_mass=mass,
        moments=expected,
        output=block.output(keys.dtype),
        cap=layer.backend.cap,
        position=position,
        count=count if old is not None and old.count is not None else None,
        absent=most - torch.tensor(lengths, device=keys.device),
        peers=model.peers,
    )


def _observation(layer: LayerCache) -> Observation | None:
    return layer.observer if isinstance(layer.observer, Observation) else None


def _flat(segments: Sequence[Segment]) -> FlatSegment | None:
    """The one segment of compressed turns, if there is any yet."""
    assert len(segments) <= 1, f"{len(segments)} segments of one conversation"
    for segment in segments:
        assert isinstance(segment, FlatSegment), segment.kind
        return segment
    return None


def _window(
    seen: Observation | None, end: int, entries: int, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Observation queries, their log-sum-exps, and how many of the `entries` each of them sees."""
    if seen is None or seen.window is None:
        empty = like.new_empty(0)
        return empty, empty, torch.zeros(0, dtype=torch.long, device=like.device)
    queries, lse = seen.window
    at = torch.arange(seen.end - len(queries), seen.end, device=like.device)
    return queries, lse, entries - (end - 1 - at).clamp(0, entries - 1)


def _carried(given: Prefilled, segment: Segment) -> Tensor | None:
    """Column sums `[R]` of the entries that were kept, by their positions."""
    if given.column_mass is None or given.position is None:
        return None
    assert isinstance(segment, FlatSegment), segment.kind
    parts = []
    for head, (a, b) in enumerate(zip(segment.ends, segment.ends[1:], strict=False)):
        at = torch.searchsorted(given.position[head], segment.position[a:b])
        parts.append(given.column_mass[head, at])
    return torch.cat(parts)
