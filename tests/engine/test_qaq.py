"""Bits by entry: QAQ's formulas by hand, its buckets and their bytes, attention over all of them;
what CORM and Elastic Cache keep, by hand."""

from dataclasses import replace

import pytest
import torch

from kvchat.engine.budget import Budget
from kvchat.engine.cache.mixed import MixedSegment
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.elastic import Elastic
from kvchat.engine.methods.qaq import QAQ, WIDTHS, cost
from kvchat.engine.methods.scores import most_mass
from kvchat.engine.methods.window import CORM
from kvchat.kernels.reference import combine
from tests.engine.scenes import compressed, kept_tokens, oracle_scene, random_scene
from tests.engine.tiny import load_engine, random_ids, read, torch_backend
from tests.support.closeness import assert_attention, assert_close


def valued(scene):
    """With values that differ from channel to channel."""
    generator = torch.Generator().manual_seed(1)
    return replace(scene, values=torch.randn(scene.values.shape, generator=generator))


def test_allowed_errors_by_hand():
    """Of 12 tokens, a value that gets attention a may be off by eps / a: one of range 4 has r / 2e
    of 2a if eps is 1. A key may be off by
    sqrt(12/3 * ln(1728/11 * 4 + 1)) = 5.077 if eps is 2 and queries have norm 3."""
    scene = random_scene(1, 1, 12, 5)
    method = QAQ(norm=3.0, rows=5)
    assert method.key_error(scene, 2.0) == pytest.approx(5.0773, abs=1e-3)
    values = torch.zeros(1, 12, 8)
    values[..., 0] = 4.0
    reaches = method.ranges(replace(scene, values=values))
    attention = most_mass(scene, 12)
    assert_close("r / 2e", reaches.value, 2 * attention, 1e-6)
    assert_close("if it goes, it is off by 4", reaches.absent, 4 * attention, 1e-6)
    around = scene.keys - scene.keys.mean(dim=1, keepdim=True)
    assert_close("key", reaches.key, (around.amax(-1) - around.amin(-1)) / 2, 1e-6)
    assert method.key_error(scene, 4.0) > method.key_error(scene, 2.0), "it grows with eps"


def test_attention_that_vanishes_needs_no_bits_and_twice_the_error_one_bit_less():
    scene = valued(random_scene(2, 2, 200, 5))
    method = QAQ(sinks=0, recent=1)
    reaches = method.ranges(scene)
    few, many = (method.buckets(scene, reaches, eps, 400) for eps in (1e6, 1e-6))
    assert (few > 0).sum(dim=1).tolist() == [1, 1], "the newest alone"
    assert bool((many == 16).all())
    needed = [torch.log2(1e6 * reaches.value / eps + 1) for eps in (1.0, 2.0)]
    assert float((needed[0] - needed[1] - 1).abs().median()) < 0.05
    for bits in (few, many):
        for width in WIDTHS[1:-1]:
            assert not bool(((bits == width).sum(dim=1) % 32).any()), "whole groups"


@pytest.mark.parametrize("budget", ["10%", "25%", "50%", "90%", "60KiB"])
def test_the_budget_is_met_in_bytes(budget):
    scene = valued(random_scene(2, 3, 1500, 5, dim=32))
    method = parse_method("qaq", Budget.parse(budget))
    segment = method.compress(scene)
    allowed = method.share(scene) * scene.geometry.plain_bytes
    assert 0.9 * allowed < segment.memory().total <= allowed + 200
    assert set(segment.stored) <= set(WIDTHS[1:]) and len(segment.stored) > 1
    assert sum(segment.lengths) == sum(sum(part.lengths) for part in segment.stored.values())
    whole = method.compress(replace(scene, queries=scene.queries * 0))
    assert whole.memory().total <= allowed + 200, "where nobody is attended to more than others"


def test_attention_is_the_sum_over_all_precisions():
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 300, 32, generator=generator)
    flat = FlatSegment.of(k, v, [200, 100], torch.arange(300), (0, 300))
    bits = torch.tensor([2, 4, 8, 16]).repeat(75)
    bits[:64], bits[200:264] = 4, 2
    segment = MixedSegment.of(flat, bits, WIDTHS[1:])
    q = torch.randn(2, 4, 32, generator=generator)
    parts = [part.attend(q, 0.2, torch_backend()) for part in segment.stored.values()]
    assert_attention(segment.attend(q, 0.2, torch_backend()), combine(parts))
    assert segment.lengths == (200, 100) and len(segment.parts) == 7
    again = MixedSegment.load(segment.tensors(), segment.span)
    assert again.memory() == segment.memory() and again.lengths == segment.lengths
    assert all(torch.equal(t, segment.tensors()[n]) for n, t in again.tensors().items())


def test_a_model_goes_on_over_mixed_precisions(checkpoint):
    engine, ids = load_engine(checkpoint(head_dim=32)), random_ids(400)
    full, mixed = (
        read(engine, ids, method)[0] for method in (None, parse_method("qaq", Budget(fraction=0.6)))
    )
    assert mixed.memory().total < 0.7 * full.memory().total
    got, want = (drain(engine.extend(cache, random_ids(3, seed=2))) for cache in (mixed, full))
    assert_close("logits", got, want, 0.2)


def test_the_bytes_of_bits():
    scene = random_scene(1, 1, 64, 5, dim=32)
    bits = torch.tensor([[0] * 16 + [2] * 16 + [4] * 16 + [16] * 16])
    # codes, a scale and a zero of 16 bits for each key channel's 32 and each value, a position
    few = [2 * 32 * width // 8 + 4 * 2 + 4 for width in (2, 4)]
    assert cost(bits, scene.geometry) == 16 * (sum(few) + 2 * 32 * 4 + 4)


def test_corm_by_hand():
    """Queries that see 5 and 6 entries: in the first head the shares .1 .2 .4 .1 (of 5: .5 1 2 .5)
    and .3 .1 .1 .1 (of 6: 1.8 .6 .6 .6); in the second .7 .05 .05 .1 and .7 .025 .075 .05. So
    entries 0, 1 and 2 are more than minor in the first head, and entry 0 in the second."""
    want = torch.tensor([[1.8, 1.0, 2.0, 0.6], [4.2, 0.25, 0.45, 0.5]])
    assert_close("shares", most_mass(oracle_scene(), 4, shares=True), want, 1e-5)
    scene = replace(oracle_scene(), lse=oracle_scene().lse - 1e-4)  # 1.0 is at the edge
    rule = CORM(window=2, mode="rule", sinks=0)
    assert kept_tokens(rule.compress(scene)) == [[0, 1, 2, 4, 5], [0, 4, 5]]
    budget = CORM(Budget(entries_per_head=3), window=1, sinks=0)
    assert kept_tokens(compressed(budget, oracle_scene())) == [[0, 2, 5], [0, 4, 5]]


def test_elastic_cache_by_hand():
    """Tokens 0, 2 and 7 are anchors in both heads: 1 joins 0, as near to it as to 2, and 3 and 4
    join 2; 5 and 6 join 7."""
    scene = random_scene(2, 2, 8, 1)
    mass = torch.tensor([[9.0, 0, 5, 1, 1, 1, 1, 0], [0.0, 1, 5, 1, 1, 1, 2, 0]])
    scene = replace(scene, column_mass=mass)
    method = Elastic(Budget(entries_per_head=3), sinks=0, recent=1)
    segment = method.compress(scene)
    assert kept_tokens(segment) == [[0, 2, 7]] * 2
    assert segment.count.tolist() == [2, 3, 3] * 2
    assert segment.v[:3, 0].tolist() == [0.5, 3.0, 6.0]
    assert_close("k", segment.k[1], scene.keys[0, 2:5].mean(dim=0), 1e-6)
    assert_close("bias", segment.bias, segment.count.float().log(), 1e-6)
    plain = Elastic(Budget(entries_per_head=3), sinks=0, recent=1, value="plain").compress(scene)
    assert plain.bias is None and torch.equal(plain.k, segment.k)


def test_elastic_cache_merges_again_by_count():
    """Where entries stand for several tokens means are over tokens, and nothing is lost."""
    scene = random_scene(1, 1, 40, 1)
    first = Elastic(Budget(entries_per_head=10)).compress(scene)
    given = replace(
        scene, keys=first.k[None], values=first.v[None], column_mass=torch.rand(1, 10),
        position=first.position[None], count=first.count[None], end=40,
        absent=torch.zeros(1, dtype=torch.long),
    )  # fmt: skip
    again = Elastic(Budget(entries_per_head=4)).extend(given)
    assert int(again.count.sum()) == 40 and again.lengths == (4,)
    total = (again.v[:, 0] * again.count).sum()
    assert float(total) == pytest.approx(sum(range(40)), rel=1e-5)
