"""Bytes of the cache are those of its tensors, metadata included; packing of segments."""

import pytest
import torch

from kvchat.engine.cache import SEGMENTS
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.cache.memory import Memory
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.cache.tail import Tail
from tests.engine.scenes import freeze
from tests.engine.tiny import torch_backend

CPU = torch.device("cpu")
DIM = 8


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


def test_capacity_grows_by_a_quarter_and_at_least_256():
    """What is reserved is exact and never shrinks."""
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
            assert tail.capacity == full + max(256, full // 4)
        assert tail.memory() == Memory(device=tail_bytes(2, tail.capacity))
    assert len(seen) <= 10, "copies are amortised"
    store = torch.zeros(100)
    assert Memory.of([store[:3], store[50:]]) + Memory(1, 2, 3) == Memory(401, 2, 3)


def test_freezing_gives_the_memory_back():
    layer = LayerCache(Tail(2, DIM, torch.float32, CPU), torch_backend())
    layer.append(numbered(2, 60), numbered(2, 60))
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
    tail.truncate(1500)
    tail.trim()
    assert tail.capacity >= 2000, "a little shorter is no reason to copy"
    tail.truncate(10)
    tail.trim()
    assert tail.capacity == 266 and torch.equal(tail.keys, keys)
