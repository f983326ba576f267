"""Layers of made-up documents, as a method sees them after an exact reading."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.cache.segment import FlatSegment, Segment
from kvchat.engine.cache.tail import Tail
from kvchat.engine.methods import METHODS
from kvchat.engine.methods.base import Method, Moments, Prefilled
from kvchat.engine.methods.eviction import Eviction
from kvchat.engine.methods.needs import GATE, Needs, ReplayScore
from kvchat.engine.methods.options import ASK, REPEAT, WEIGHINGS, WHOLE
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.specs import load, options
from kvchat.engine.prefill.global_budget import Pool
from kvchat.kernels.reference import dense_attention
from tests.engine.tiny import random_features, torch_backend
from tests.support.closeness import assert_close


def bare(name: str) -> str:
    """A method, without entries that stand for what is evicted: those have tests of their own."""
    return f"{name}:means=0" if "means" in options(name) else name


EVICTING = [bare(n) for n in METHODS if issubclass(load(n), Eviction) and n != "cam"]
"""Methods that keep entries as they are, or drop them."""
RETRIEVING = [n for n, entry in METHODS.items() if entry.retrieves]
"""Methods that keep every entry, where each written token chooses what it reads."""
KEEPING = [bare(n) for n in METHODS if n not in RETRIEVING and n not in ("qaq", "less")]
"""Methods whose budget is what is kept, by the entry; those of qaq and less pay for more."""


def paired(names: Sequence[str], *columns: Sequence, times: int = 1) -> list[tuple]:
    """Every name with `times` values of each column in turn, in changing combinations."""
    rows = []
    for number, name in enumerate(names):
        for turn in range(number * times, (number + 1) * times):
            at, row = turn, [name]
            for column in columns:
                row.append(column[at % len(column)])
                at = at // len(column) + at
            rows.append(tuple(row))
    return rows


# Oracle S of the Ada-KV specification: D 2, T 6, W 2; key j of a head is sqrt(2)·(ln a, ln b).
A = [[1.0, 2, 4, 1, 2, 7], [14.0, 1, 1, 2, 2, 9]]
B = [[3.0, 1, 1, 1, 2, 2], [28.0, 1, 3, 2, 4, 2]]


def prefilled(keys: Tensor, queries: Tensor, scale: float, start: int = 0) -> Prefilled:
    """`keys [H, T, D]` and the last W queries `[W, H*G, D]`; entry t of every value is full of
    t."""
    heads, tokens, dim = keys.shape
    values = torch.arange(tokens).float()[None, :, None].expand(heads, tokens, dim).contiguous()
    window = len(queries)
    _, lse = dense_attention(queries, keys, values, scale, causal=True)
    query_heads, generator = queries.shape[1], torch.Generator().manual_seed(tokens)
    covariance = torch.randn(query_heads, dim, dim, generator=generator)
    return Prefilled(
        keys=keys,
        values=values,
        queries=queries,
        lse=lse,
        seen=torch.arange(tokens - window, tokens) + 1,
        scale=scale,
        layer=0,
        num_layers=1,
        start=start,
        column_mass=torch.rand(heads, tokens, generator=generator),
        moments=Moments(
            torch.randn(query_heads, dim, generator=generator),
            covariance @ covariance.transpose(1, 2),
        ),
        told={
            ReplayScore(tell, chunk, weigh): torch.rand(heads, tokens, generator=generator)
            for tell, chunk in ((REPEAT, 512), (WHOLE, 512), (ASK, 2048))
            for weigh in WEIGHINGS
        }
        | {GATE: torch.rand(heads, tokens, generator=generator)},
        output=torch.randn(query_heads, dim, 2 * dim, generator=generator),
        features=random_features(1, heads, query_heads // heads, dim)[0],
    )


def oracle_scene() -> Prefilled:
    """Oracle S: mean prefix scores .20 .15 .25 .10 | .70 .0375 .0625 .075."""
    keys = math.sqrt(2) * torch.stack((torch.tensor(A).log(), torch.tensor(B).log()), dim=-1)
    queries = torch.eye(2)[:, None].expand(2, 2, 2).contiguous()
    return prefilled(keys, queries, 2**-0.5)


def random_scene(
    heads: int, group: int, tokens: int, window: int, seed: int = 0, dim: int = 8
) -> Prefilled:
    """Heads of very different sharpness, so that an adaptive allocation is uneven."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(heads, tokens, dim, generator=generator)
    queries = torch.randn(min(window, tokens), heads, group, dim, generator=generator)
    queries *= torch.linspace(0.3, 4, heads)[None, :, None, None]
    return prefilled(keys, queries.flatten(1, 2), dim**-0.5)


def kept_tokens(segment) -> list[list[int]]:
    """Entry numbers that each head keeps, in the order of the store."""
    entries = (segment.position - segment.span[0]).tolist()
    return [entries[a:b] for a, b in zip(segment.ends, segment.ends[1:], strict=False)]


def assert_same_cache(got: KVCache, want: KVCache, tolerance: float = 0.0) -> None:
    """Segments of the same kinds, tokens and entries; floating point within `tolerance`."""
    assert got.position == want.position
    for mine, other in zip(got.segments(), want.segments(), strict=True):
        assert (mine.kind, mine.span, mine.lengths) == (other.kind, other.span, other.lengths)
        tensors, wanted = mine.tensors(), other.tensors()
        assert tensors.keys() == wanted.keys()
        for name, tensor in tensors.items():
            assert tensor.dtype == wanted[name].dtype
            if tolerance and tensor.is_floating_point():
                assert_close(name, tensor, wanted[name], tolerance)
            else:
                assert torch.equal(tensor, wanted[name]), name


def window_of(method) -> int:
    """Observation queries that a scene for `method` needs, one at least."""
    return max(method.needs.queries, 1)


def freeze(layer: LayerCache, entries: int, kept: Tensor) -> None:
    """Let the oldest `entries` entries of a layer's tail become a segment of those that are
    `kept`."""
    tail = layer.tail
    layer.freeze(
        FlatSegment.keep(tail.keys[:, :entries], tail.values[:, :entries], kept, tail.start)
    )


def compressed(method: Method, scene: Prefilled) -> Segment:
    """What a method leaves of a model of one layer."""
    heads, _, dim = scene.keys.shape
    tail = Tail(heads, dim, scene.keys.dtype, scene.keys.device)
    layer = LayerCache(tail, torch_backend())
    pool = Pool(method, [layer], scene.geometry)
    pool.take(scene)
    pool.finish()
    return layer.segments[0]


class Recorder(Full):
    """Keeps everything and remembers what it was shown, layer by layer."""

    def __init__(self, needs: Needs):
        self.__dict__.update(wanted=needs, shown=[])

    @property
    def needs(self) -> Needs:
        return self.__dict__["wanted"]

    def compress(self, prefilled: Prefilled) -> FlatSegment:
        self.__dict__["shown"].append(prefilled)
        return prefilled.keep_all()
