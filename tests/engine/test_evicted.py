"""Means of what was evicted: by hand, in any order, in a model, in few bits."""

from dataclasses import replace

import pytest
import torch

from kvchat.engine.budget import Budget
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods.build import parse_method
from kvchat.engine.peers import ALONE
from kvchat.engine.prefill import evicted
from kvchat.engine.prefill.evicted import Evicted
from kvchat.errors import KvchatError
from tests.engine.scenes import compressed, kept_tokens, random_scene
from tests.engine.tiny import load_engine, random_ids, read, torch_backend
from tests.support.closeness import assert_attention, assert_close

IDS = random_ids(260, seed=11)


def scene(heads: int, tokens: int, dim: int = 4) -> tuple[torch.Tensor, FlatSegment]:
    """Keys, and the segment of all entries, at positions from 100 on."""
    generator = torch.Generator().manual_seed(5)
    keys, values = (torch.randn(heads, tokens, dim, generator=generator) for _ in range(2))
    every = torch.ones(heads, tokens, dtype=torch.bool)
    return keys, FlatSegment.keep(keys, values, every, 100)


def test_by_hand():
    """Two clusters, around (0, 0) and (9, 9). Of the first, keys (0, 1) and (1, 0) go, worth 1 and
    3: key (.75, .25), value 3.25 where theirs are 1 and 4, bias ln 2, at 103, where the better one
    was. Of the second, one goes: itself, without a bias."""
    keys = torch.tensor([[[0.0, 0], [0, 1], [9, 9], [1, 0], [9, 8]]])
    values = torch.tensor([[[0.0, 0], [1, 1], [2, 2], [4, 4], [5, 5]]])
    segment = FlatSegment.keep(keys, values, torch.ones(1, 5, dtype=torch.bool), 100)
    sums = Evicted(keys, 2, ALONE)
    stays = torch.tensor([True, False, True, False, False])
    sums.take(segment, stays, torch.tensor([9.0, 1, 9, 3, 2]))
    found = sums.among(segment.where(stays))
    assert found.position.tolist() == [100, 102, 103, 104] and found.span == (100, 105)
    assert found.k.tolist() == [[0, 0], [9, 9], [0.75, 0.25], [9, 8]]
    assert found.v[:, 0].tolist() == [0, 2, 3.25, 5]
    assert_close("bias", found.bias, torch.tensor([0, 0, 2, 1]).clamp(min=1).log(), 1e-6)


@pytest.mark.parametrize("piece", [1, 3, 8192])
def test_the_order_in_which_entries_go_does_not_matter(monkeypatch, piece):
    """All at once, and in turns of ten, in slices of some entries."""
    keys, segment = scene(3, 90)
    worth = torch.rand(270, generator=torch.Generator().manual_seed(1)) ** 4
    stays = worth > 0.3
    once = Evicted(keys, 4, ALONE)
    once.take(segment, stays, worth)
    monkeypatch.setattr(evicted, "SLICE", piece)
    turns, left, its = Evicted(keys, 4, ALONE), segment, worth
    for bound in torch.linspace(0, 0.3, 11)[1:].tolist():
        keep = its > bound
        turns.take(left, keep, its)
        left, its = left.where(keep), its[keep]
    want, got = (each.among(segment.where(stays)) for each in (once, turns))
    assert torch.equal(got.position, want.position) and torch.equal(got.bias, want.bias)
    assert_close("keys", got.k, want.k, 1e-5)
    assert_close("values", got.v, want.v, 1e-5)
    lost = [90 - n for n in segment.where(stays).lengths]
    means = got.bias.exp() - 1  # an entry that stays counts once
    assert [round(float(part.sum())) for part in means.split(list(got.lengths))] == [
        n - 4 for n in lost
    ]


@pytest.mark.parametrize("name", ["kvzip", "kvzap"])
def test_the_budget_pays_for_means_and_the_others_are_the_best(checkpoint, name):
    engine = load_engine(checkpoint())
    heads, layers = engine.config.num_kv_heads, engine.config.num_layers
    budget = Budget(fraction=0.25)
    total = layers * round(0.25 * heads * len(IDS))
    without = total - 4 * heads * layers
    cache, _ = read(engine, IDS, parse_method(name, budget))
    fewer = Budget(fraction=without / (layers * heads * len(IDS)))
    bare, _ = read(engine, IDS, parse_method(f"{name}:means=0", fewer))
    whole, _ = read(engine, IDS)
    assert without < cache.kept <= total and bare.kept == without
    for got, best, every in zip(cache.segments(), bare.segments(), whole.segments(), strict=True):
        heads_of = zip(kept_tokens(got), kept_tokens(best), every.lengths, strict=True)
        for all_of_it, plain, length in heads_of:
            assert set(plain) <= set(all_of_it) and len(all_of_it) - len(plain) <= 4
            assert len(set(all_of_it)) == len(all_of_it) <= length
        there = got.bias.split(list(got.lengths))
        missing = [int((own.exp() - 1).sum().round()) + len(own) for own in there]
        assert missing == list(every.lengths), "every entry counts once"


def test_attention_to_entries_that_are_alike_is_exact():
    """Three keys with a value each, in turn: whatever goes, its mean is all that it was."""
    generator = torch.Generator().manual_seed(7)
    kinds = torch.randn(2, 3, 8, generator=generator)
    keys, values = kinds.repeat(1, 40, 1), kinds.flip(2).repeat(1, 40, 1)
    segment = FlatSegment.keep(keys, values, torch.ones(2, 120, dtype=torch.bool), 0)
    sums, stays = Evicted(keys, 16, ALONE), torch.rand(240, generator=generator) < 0.2
    sums.take(segment, stays, torch.rand(240, generator=generator))
    found = sums.among(segment.where(stays))
    assert max(found.lengths) < 60
    q = torch.randn(5, 4, 8, generator=generator)
    want, got = (each.attend(q, 0.5, torch_backend()) for each in (segment, found))
    assert_attention(got, want)


def test_a_budget_that_would_hold_nothing_else_has_no_means(checkpoint):
    engine = load_engine(checkpoint())
    cache, _ = read(engine, IDS, parse_method("kvzip", Budget(entries_per_head=4)))
    bare, _ = read(engine, IDS, parse_method("kvzip:means=0", Budget(entries_per_head=4)))
    assert all(segment.bias is None for segment in cache.segments())
    assert cache.kept == bare.kept == 4 * engine.config.num_kv_heads * engine.config.num_layers


def test_means_are_whole_in_few_bits(checkpoint):
    engine = load_engine(checkpoint(head_dim=32))
    few, _ = read(engine, IDS, parse_method("kvzip:bits=4,budget=50%"))
    plain, _ = read(engine, IDS, parse_method("kvzip:budget=50%"))
    for small, flat in zip(few.segments(), plain.segments(), strict=True):
        assert small.kind == "quantized" and small.bias is None and small.ends[-1] > 0
        biased = flat.bias > 0
        rest = small.rest.bias > 0
        assert torch.equal(small.rest.k[rest], flat.k[biased])
        assert torch.equal(small.rest.position[rest], flat.position[biased])


def test_a_budget_in_bytes_pays_for_the_biases(checkpoint):
    engine = load_engine(checkpoint())
    for size in (14_000, 20_000, 30_000):
        for bits in (16, 8):
            method = parse_method(f"kvzip:bits={bits}", Budget(bytes=size))
            cache, _ = read(engine, IDS, method)
            least = replace(method, means=0)
            bare, _ = read(engine, IDS, least)
            assert cache.memory().total <= size and cache.kept < bare.kept


@pytest.mark.parametrize("form", ["1", "5", "6", "33", "3%", "99%", "300B", "1KiB", "2.5kB"])
@pytest.mark.parametrize("name", ["kvzip", "kvzap", "kvzip:bits=4"])
def test_every_budget_holds_or_is_an_error_with_a_way_out(name, form):
    """Documents of 1 to 70 tokens: with few entries, with few to evict."""
    method = parse_method(name, Budget.parse(form))
    for tokens in (1, 4, 5, 6, 9, 33, 70):
        layer = random_scene(2, 2, tokens, 1, dim=8)
        try:
            segment = compressed(method, layer)
        except KvchatError as error:
            (least,) = (text.split()[1] for text in error.tries if text.endswith("or more"))
            assert min(compressed(parse_method(name, Budget.parse(least)), layer).lengths) >= 1
            continue
        most = min(method.budget.entries(method.priced(layer.geometry)), 2 * tokens)
        assert min(segment.lengths) >= 1 and most - 8 <= sum(segment.lengths) <= most
        if method.budget.bytes is not None:
            assert segment.memory().total <= method.budget.bytes
