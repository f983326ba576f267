"""Entries that slide from the tail into a PQ segment and back: nothing is lost, nothing is
doubled.
"""

import random

import pytest
import torch

from kvchat.engine import ops
from kvchat.engine.cache.layer import KVCache, LayerCache
from kvchat.engine.cache.pq import Reads
from kvchat.engine.cache.tail import Tail
from kvchat.engine.methods.pqcache import train
from tests.engine.test_pq_segment import made, over
from tests.engine.tiny import torch_backend
from tests.support.closeness import assert_close

CPU = torch.device("cpu")


def test_the_window_by_hand():
    """Oracle 8.1: S 2, W 3, n 10; after token 10 entry 7 is a candidate, with its own code."""
    cache, _ = numbered(entries=10, reads=Reads(2, 3, 1, 1))
    (layer,) = cache.layers
    assert (layer.segments[0].span, layer.tail.start, layer.tail.length) == ((0, 7), 7, 3)
    for token, coded in ((10, 6), (11, 7), (12, 8)):
        step(cache, [token])
        assert layer.segments[0].codes.shape[1] == coded
        assert layer.tail.keys[0, :, 0].tolist() == [token - 2, token - 1, token]
    assert positions(layer.segments[0]) == list(range(10))
    assert (cache.frozen, cache.kept) == (10, 20)


def key_of(tokens) -> torch.Tensor:
    """Keys `[2, T, 4]` that carry their token's number."""
    numbers = torch.tensor(tokens).float()
    return torch.stack(
        [torch.stack([numbers, sign * numbers, numbers % 7, numbers % 5], -1) for sign in (1, -1)]
    )


def numbered(entries, reads, layers=1):
    """A cache whose key entries and value entries are `key_of` their positions."""
    cache = KVCache.empty(layers, 2, 4, torch.float32, CPU, torch_backend())
    keys = key_of(range(entries))
    inside = entries - reads.window
    centroids = train(keys[:, reads.sinks : inside], 2, 4, 5, 4321)
    for layer in cache.layers:
        segment = made(keys[:, :inside], -keys[:, :inside], centroids, reads)
        layer.adopt(segment, keys[:, inside:], -keys[:, inside:])
    cache.position = entries
    return cache, centroids


def step(cache, tokens):
    """Feed tokens as `prefill.extend` does."""
    for layer in cache.layers:
        layer.tail.append(key_of(tokens), -key_of(tokens))
        layer.attend(torch.ones(len(tokens), 4, 4), 0.01)
    cache.advance(len(tokens))


def positions(segment):
    keys = torch.cat((segment.pool[0, :, 0], segment.late.keys[0, :, 0]))
    return keys.tolist()


@pytest.mark.parametrize("block", [1, 64])
def test_entries_are_never_lost_or_doubled_over_a_thousand_tokens(block):
    """Decode, turns and truncation; sink, middle and window are a partition."""
    dice = random.Random(block)
    reads = Reads(3, 20, 15, block)
    cache, centroids = numbered(120, reads, layers=2)
    done = 0
    while done < 1000:
        count = dice.choice([1] * 12 + [5, 90])
        step(cache, range(cache.position, cache.position + count))
        done += count
        if dice.random() < 0.05:
            cache.truncate(dice.randint(max(120, cache.position - 150), cache.position))
        if done % 5:
            continue
        for layer in cache.layers:
            segment, tail = layer.segments[0], layer.tail
            live = tail.keys[0, :, 0].tolist()
            assert positions(segment) + live == list(range(cache.position))
            assert 20 <= len(live) < 20 + block
            assert segment.span == (0, tail.start)
            everything = key_of(range(tail.start))
            assert torch.equal(segment.codes, ops.pq_assign(everything[:, 3:], centroids))
            assert torch.equal(segment.late.values, -everything[:, 100:])
            assert float(segment.cells.count.sum()) == 2 * (tail.start - 3)
            found = segment._fetched(segment.choose(torch.randn(4, 4), 1.0))
            assert torch.equal(found.k, -found.v)
            entries = found.k[:, 0].view(2, -1).long()
            assert entries[:, :3].tolist() == [[0, 1, 2]] * 2
            assert bool((entries.diff(dim=1) > 0).all()) and int(entries.max()) < tail.start
    with pytest.raises(AssertionError, match="120"):
        cache.truncate(119)


def test_a_tail_of_entries_that_slid_is_the_tail_of_what_is_left():
    generator = torch.Generator().manual_seed(0)
    entries = torch.randn(2, 340, 8, generator=generator)
    q = torch.randn(1, 4, 8, generator=generator)
    tail = Tail(2, 8, torch.float32, CPU)
    tail.append(entries[:, :50], entries[:, :50])
    tail.slide(20)
    store = tail.k
    tail.append(entries[:, 50:200], entries[:, 50:200])
    assert tail.k is store and tail.start == 20
    tail.append(entries[:, 200:], entries[:, 200:])
    assert tail.k is not store and torch.equal(tail.keys, entries[:, 20:])
    tail.slide(30)
    tail.prepend(entries[:, 40:50], entries[:, 40:50])
    assert tail.start == 40 and torch.equal(tail.values, entries[:, 40:])
    layer = LayerCache(Tail(2, 8, torch.float32, CPU), torch_backend())
    layer.tail.append(entries[:, 40:], entries[:, 40:])
    got, want = tail.attend(q, 0.3, torch_backend()), layer.attend(q, 0.3)
    assert_close("o", got[0], want[0], 1e-6)
    tail.slide(7)
    o, _ = tail.attend(q, 0.3, torch_backend())
    assert_close("o", o, over(q, entries, entries, [range(47, 340)] * 2, 0.3)[0], 1e-5)
