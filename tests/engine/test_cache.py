"""Caches under random operations against lists of entries (values carry their token, so that a key
that meets another value is seen); bytes are those of the tensors, metadata included."""

import random

import pytest
import torch

from kvchat.engine.cache import SEGMENTS
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.cache.segment import FlatSegment, Memory
from kvchat.engine.cache.tail import Tail
from tests.engine.scenes import freeze
from tests.engine.tiny import torch_backend
from tests.kernels.naive import attention
from tests.support.closeness import assert_attention, relative_rms

HEADS, GROUP, DIM = 2, 2, 16
CPU = torch.device("cpu")


def new_layer() -> LayerCache:
    return LayerCache(Tail(HEADS, DIM, torch.float32, CPU), torch_backend())


class Model:
    """The same cache as lists: per head the kept `(key, value)` entries, oldest first."""

    def __init__(self):
        self.frozen = [[] for _ in range(HEADS)]
        self.tail = [[] for _ in range(HEADS)]

    def parts(self):
        entries = [self.frozen[h] + self.tail[h] for h in range(HEADS)]
        return [
            (torch.stack([k for k, _ in head]), torch.stack([v for _, v in head]), None)
            for head in entries
        ]


def value_of(head: int, token: int) -> torch.Tensor:
    v = torch.zeros(DIM)
    v[0], v[1], v[2 + token % (DIM - 2)] = head, token, 1.0
    return v


@pytest.mark.parametrize("seed", range(12))
def test_random_operations_agree_with_lists_of_entries(seed):
    dice, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    layer, model, seen = new_layer(), Model(), 0
    for _ in range(30):
        live = layer.tail.length
        what = dice.choice(["append", "append", "ahead", "freeze", "truncate"])
        if what == "append" or live == 0:
            count = dice.choice([1, 1, 3, 40])
            k = torch.randn(HEADS, count, DIM, generator=generator)
            tokens = range(seen, seen + count)
            v = torch.stack([torch.stack([value_of(h, t) for t in tokens]) for h in range(HEADS)])
            layer.tail.append(k, v)
            for h in range(HEADS):
                model.tail[h] += list(zip(k[h], v[h], strict=True))
            seen += count
            q = torch.randn(count, HEADS * GROUP, DIM, generator=generator)
            assert_attention(
                layer.attend(q, 0.25), attention(q, model.parts(), 0.25, causal=True), 1e-5
            )
        elif what == "ahead":  # entries that a step wrote; some are never counted
            layer.tail.grow(3)
            k, v = torch.randn(2, HEADS, 3, DIM, generator=generator)
            v[:, :, 1] = torch.arange(seen, seen + 3)
            for t in range(3):
                place = torch.tensor([layer.tail.place + t])
                layer.tail.k.index_copy_(1, place, k[:, t : t + 1])
                layer.tail.v.index_copy_(1, place, v[:, t : t + 1])
            count = dice.randint(1, 3)
            layer.tail.accept(count)
            for h in range(HEADS):
                model.tail[h] += list(zip(k[h, :count], v[h, :count], strict=True))
            seen += count
            q = torch.randn(1, HEADS * GROUP, DIM, generator=generator)
            length = torch.full((HEADS,), live + count, dtype=torch.int32)
            want = attention(q, model.parts(), 0.25)
            ahead = layer.tail.entries_ahead(length)
            for got in (layer.attend(q, 0.25), layer.attend(q, 0.25, ahead)):
                assert_attention(got, want)
        elif what == "freeze":
            entries = dice.randint(1, live)
            kept = torch.rand(HEADS, entries, generator=generator) < 0.5
            freeze(layer, entries, kept)
            for h in range(HEADS):
                old = model.tail[h][:entries]
                model.frozen[h] += [entry for entry, keep in zip(old, kept[h], strict=True) if keep]
                model.tail[h] = model.tail[h][entries:]
        else:
            length = dice.randint(0, live)
            layer.tail.truncate(length)
            seen -= live - length
            for h in range(HEADS):
                model.tail[h] = model.tail[h][:length]
        assert layer.tail.start + layer.tail.length == seen
        assert layer.tail.entries.length.tolist() == [layer.tail.length] * HEADS
        for h in range(HEADS):  # keys beside the values of the same token
            tokens = [int(v[1]) for _, v in model.tail[h]]
            assert layer.tail.values[h, :, 1].tolist() == tokens


def test_preallocated_entries_of_the_tail_are_never_read():
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, HEADS, 12, DIM, generator=generator).unbind()
    q = torch.randn(5, HEADS * GROUP, DIM, generator=generator)
    layer = new_layer()
    layer.tail.append(k, v)
    want, _ = layer.attend(q, 0.25)
    assert layer.tail.capacity > 12
    layer.tail.k[:, 12:] = float("nan")
    layer.tail.v[:, 12:] = float("nan")
    assert torch.equal(layer.attend(q, 0.25)[0], want)


def test_a_cache_counts_tokens_seen_and_truncates_its_tail_only():
    cache = KVCache.empty(2, HEADS, DIM, torch.float32, CPU, torch_backend())
    entries = torch.randn(HEADS, 10, DIM, generator=torch.Generator().manual_seed(0))
    for layer in cache.layers:
        layer.tail.append(entries, entries)
        kept = torch.zeros(HEADS, 6, dtype=torch.bool)
        kept[:, 0] = True
        freeze(layer, 6, kept)
    cache.position = 10
    assert cache.frozen == 6
    cache.truncate(7)
    assert (cache.position, cache.layers[1].tail.length) == (7, 1)
    for position in (5, 8):
        with pytest.raises(AssertionError):
            cache.truncate(position)


def test_sums_over_parts_in_bf16_are_as_good_as_plain_torch_in_bf16():
    """A ragged segment, a second one and the tail, against one softmax over all their entries."""
    generator = torch.Generator().manual_seed(0)
    layer = LayerCache(Tail(HEADS, DIM, torch.bfloat16, CPU), torch_backend())
    k, v = torch.randn(2, HEADS, 120, DIM, generator=generator).bfloat16().unbind()
    layer.tail.append(k, v)
    kept = torch.rand(2, HEADS, 50, generator=generator) < torch.tensor([0.2, 0.7])[:, None]
    for part in kept:
        freeze(layer, 50, part)
    q = torch.randn(1, HEADS * GROUP, DIM, generator=generator).bfloat16()
    alive = torch.cat([*kept, torch.ones(HEADS, 20, dtype=torch.bool)], dim=1)
    parts = [(k[h, alive[h]], v[h, alive[h]], None) for h in range(HEADS)]
    want, _ = attention(q, parts, 0.25)
    heads = [(q[0, n], *parts[n // GROUP][:2]) for n in range(HEADS * GROUP)]
    plain = torch.stack([torch.softmax(one @ k.T * 0.25, -1) @ v for one, k, v in heads])
    o, _ = layer.attend(q, 0.25)
    assert relative_rms(o[0], want[0]) <= 2 * relative_rms(plain, want[0])


def numbered(heads: int, tokens: int) -> torch.Tensor:
    """`[H, T, D]` in which entry (h, t) is full of `100 h + t`."""
    entries = torch.arange(heads)[:, None] * 100 + torch.arange(tokens)[None]
    return entries[..., None].expand(heads, tokens, DIM).float().contiguous()


def mask(heads: int, tokens: int, entries: list[list[int]]) -> torch.Tensor:
    kept = torch.zeros(heads, tokens, dtype=torch.bool)
    for head, numbers in enumerate(entries):
        kept[head, numbers] = True
    return kept


def tail_bytes(heads: int, capacity: int, size: int = 4) -> int:
    """Keys, values, and the int32 start and length of each head."""
    return 2 * heads * capacity * DIM * size + 2 * 4 * heads


def test_segments_pack_heads_one_after_another():
    entries = [[0, 1, 2, 4, 5], [0, 4, 5], [1, 3, 4, 5]]
    keys = numbered(3, 6)
    segment = FlatSegment.keep(keys, keys + 1000, mask(3, 6, entries), start=7)
    assert segment.cu.tolist() == [0, 5, 8, 12]
    assert segment.ends == (0, 5, 8, 12)
    assert segment.lengths == (5, 3, 4)
    assert segment.span == (7, 13)
    want = [100 * head + t for head, numbers in enumerate(entries) for t in numbers]
    assert segment.k[:, 0].tolist() == want
    assert segment.v[:, 0].tolist() == [1000 + entry for entry in want]
    assert segment.position.tolist() == [7 + t for numbers in entries for t in numbers]
    assert segment.cu.dtype == segment.position.dtype == torch.int32


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("every", [False, True])
def test_a_segment_owns_exactly_its_entries(heads, every):
    """Also when all entries stay, and whatever the capacity of the store they came from."""
    store = torch.full((heads, 20, DIM), float("nan"))
    store[:, :6] = numbered(heads, 6)
    kept = torch.ones(heads, 6, dtype=torch.bool)
    kept[0, 2] = every
    segment = FlatSegment.keep(store[:, :6], store[:, :6], kept, 0)
    entries = int(kept.sum())
    assert segment.memory() == Memory(device=entries * (2 * DIM * 4 + 4) + 4 * (heads + 1))


def test_tensors_and_load_are_inverse():
    segment = FlatSegment.keep(numbered(2, 5), numbered(2, 5), mask(2, 5, [[1, 2], [0]]), 3)
    rich = FlatSegment.load(
        {**segment.tensors(), "bias": torch.rand(3), "count": torch.tensor([1, 2, 3])}, segment.span
    )
    for one in (segment, rich):
        again = FlatSegment.load(one.tensors(), one.span)
        assert again.tensors().keys() == one.tensors().keys()
        assert all(torch.equal(again.tensors()[n], t) for n, t in one.tensors().items())
        assert (again.span, again.ends, again.lengths) == (one.span, one.ends, one.lengths)
        assert again.memory() == one.memory()
    assert rich.memory().device == segment.memory().device + 3 * 4 + 3 * 8
    assert SEGMENTS[FlatSegment.kind].endswith(":FlatSegment")


def test_capacity_grows_by_an_eighth_and_at_least_64():
    """What is reserved is exact, and what is trimmed."""
    tail = Tail(2, DIM, torch.float32, CPU)
    assert tail.memory().total == tail_bytes(2, 0)
    tail.reserve(100)
    tail.reserve(10)
    seen = [100]
    for _ in range(3000):
        tail.append(torch.zeros(2, 1, DIM), torch.zeros(2, 1, DIM))
        if tail.capacity not in seen:
            seen.append(tail.capacity)
            full = tail.length
            assert tail.capacity == full + max(64, full // 8)
        assert tail.memory() == Memory(device=tail_bytes(2, tail.capacity))
    assert len(seen) <= 25, "copies are amortised"
    tail.trim()
    assert tail.capacity == tail.length == 3000 and tail.memory().total == tail_bytes(2, 3000)
    store = torch.zeros(100)
    assert Memory.of([store[:3], store[50:]]) + Memory(1, 2, 3) == Memory(401, 2, 3)


def test_freezing_gives_the_memory_back():
    layer = LayerCache(Tail(2, DIM, torch.float32, CPU), torch_backend())
    layer.tail.append(numbered(2, 60), numbered(2, 60))
    kept = mask(2, 50, [[0, 1], [3]])
    freeze(layer, 50, kept)
    assert (layer.tail.start, layer.tail.length, layer.tail.capacity) == (50, 10, 10)
    segment = 3 * (2 * DIM * 4 + 4) + 4 * 3
    assert layer.memory() == Memory(device=segment + tail_bytes(2, 10))
    assert layer.tail.keys[1, 0, 0] == 150


def test_a_tail_that_has_shrunk_gives_its_memory_back():
    tail = Tail(2, DIM, torch.float32, CPU)
    tail.append(*torch.randn(2, 2, 2000, DIM, generator=torch.Generator().manual_seed(0)))
    keys = tail.keys[:, :10].clone()
    tail.truncate(10)
    tail.trim()
    assert tail.capacity == 10 and torch.equal(tail.keys, keys)
