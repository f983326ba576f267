"""A cache under random operations against lists of entries: value entries carry their token's
number, so that a key which meets another token's value is seen.
"""

import random

import pytest
import torch

from kvchat.engine.cache.layer import KVCache, LayerCache
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
            layer.append(k, v)
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
                layer.tail.write(k[:, t : t + 1], v[:, t : t + 1], place)
            count = dice.randint(1, 3)
            layer.tail.accept(count)
            for h in range(HEADS):
                model.tail[h] += list(zip(k[h, :count], v[h, :count], strict=True))
            seen += count
            q = torch.randn(1, HEADS * GROUP, DIM, generator=generator)
            length = torch.full((HEADS,), live + count, dtype=torch.int32)
            want = attention(q, model.parts(), 0.25)
            for got in (layer.attend(q, 0.25), layer.attend_ahead(q, 0.25, length)):
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
    layer.append(k, v)
    want, _ = layer.attend(q, 0.25)
    assert layer.tail.capacity > 12
    layer.tail.k[:, 12:] = float("nan")
    layer.tail.v[:, 12:] = float("nan")
    assert torch.equal(layer.attend(q, 0.25)[0], want)


def test_a_cache_counts_tokens_seen_and_truncates_its_tail_only():
    cache = KVCache.empty(2, HEADS, DIM, torch.float32, CPU, torch_backend())
    entries = torch.randn(HEADS, 10, DIM, generator=torch.Generator().manual_seed(0))
    for layer in cache.layers:
        layer.append(entries, entries)
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
    layer.append(k, v)
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
