"""Scores and shares of a budget against formulas with materialised attention, hand-worked oracles
of the papers, and their theory as properties of random cases in float64."""

import itertools
import random
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from kvchat.engine.budget import Budget, Geometry
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.cache.tail import Tail
from kvchat.engine.events import drain
from kvchat.engine.methods import budgets, scores
from kvchat.engine.methods.base import Moments
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.expected_attention import ExpectedAttention
from kvchat.engine.methods.needs import Needs
from kvchat.engine.methods.simple import H2O, TOVA, Knorm
from kvchat.engine.methods.window import AdaKV, Critical, DefensiveKV, KVCompress, PyramidKV, SnapKV
from kvchat.engine.prefill.global_budget import Pool
from kvchat.engine.prefill.prefill import Compression
from tests.engine.scenes import (
    Recorder,
    compressed,
    kept_tokens,
    oracle_scene,
    prefilled,
    random_scene,
)
from tests.engine.tiny import load_engine, load_oracle, random_ids, torch_backend
from tests.support.closeness import assert_close

S = torch.tensor([[0.20, 0.15, 0.25, 0.10], [0.70, 0.0375, 0.0625, 0.075]])
TOY = torch.tensor([[0.32, 0.01, 0.18, 0.08, 0.22, 0.19], [0.89, 0.01, 0.05, 0.02, 0.01, 0.02],
                    [0.68, 0.01, 0.08, 0.04, 0.09, 0.10]])  # fmt: skip


def retained(table, counts) -> float:
    """Mass that heads keep when each takes its best `counts[h]` entries."""
    best = table.sort(dim=1, descending=True).values
    return float(sum(entry[: int(n)].sum() for entry, n in zip(best, counts, strict=True)))


def test_observed_mass_and_pooling_of_the_oracle():
    assert_close("mass", scores.by_head(scores.observed_mass(oracle_scene(), 4), 2), S, 1e-6)
    for kind, want in (
        ("max", [[0.20, 0.25, 0.25, 0.25], [0.70, 0.70, 0.075, 0.075]]),
        ("avg", [[0.11667, 0.20, 0.16667, 0.11667], [0.24583, 0.26667, 0.05833, 0.04583]]),
    ):
        assert float((scores.pool(S, 3, kind) - torch.tensor(want)).abs().max()) < 6e-6
        assert torch.equal(scores.pool(S, 1, kind), S)
    assert scores.ranked(torch.tensor([[1.0, 2, 2, 3, 2]])).tolist() == [[3, 1, 2, 4, 0]]


def test_shares_and_kept_entries_of_the_oracle():
    """Also by the authors' rule, with the largest remainder where their rounding loses entries."""
    for share, want in ((0.0, [3, 1]), (0.2, [3, 1]), (0.5, [3, 1]), (1.0, [2, 2])):
        assert budgets.adaptive(S, 4, share) == budgets.mixed(S, 4, share) == want
    assert retained(S, [3, 1]) - retained(S, [2, 2]) == pytest.approx(1.725 - 1.65)
    budget, scene = Budget(entries_per_head=4), oracle_scene()
    options = {"budget": budget, "window": 2, "kernel": 1, "sinks": 0}
    ada, snap = [[0, 1, 2, 4, 5], [0, 4, 5]], [[0, 2, 4, 5], [0, 3, 4, 5]]
    assert kept_tokens(AdaKV(**options, floor=0.0).compress(scene)) == ada
    assert kept_tokens(SnapKV(**options).compress(scene)) == snap
    paper = parse_method("adakv@paper:window=2,kernel=1,floor=0.5", budget)
    assert kept_tokens(paper.compress(scene)) == ada


def test_kv_compress_by_hand():
    """Squared attention of both queries: (.1, .3), (.2, .1), (.4, .1), (.1, .1) in the first head,
    (.7, .7), (.05, .025), (.05, .075), (.1, .05) in the second one. The best four are 1 of the
    second head and 3 of the first; with a safeguard of 1 they are two each."""
    scene, options = oracle_scene(), {"window": 2, "kernel": 1, "sinks": 0}
    method = KVCompress(Budget(entries_per_head=4), even=0.0, **options)
    table, _ = method.tables(scene)
    want = [[0.10, 0.05, 0.17, 0.02], [0.98, 0.003125, 0.008125, 0.0125]]
    assert_close("sum", 2 * table[:, :4], torch.tensor(want), 1e-6)
    assert kept_tokens(compressed(method, scene)) == [[0, 1, 2, 4, 5], [0, 4, 5]]
    even = KVCompress(Budget(entries_per_head=4), even=1.0, **options)
    assert kept_tokens(compressed(even, scene)) == [[0, 2, 4, 5], [0, 3, 4, 5]]


def test_kv_compress_shares_one_budget_among_layers():
    """The newest entry stays. Of 8 more, .98, .17, .10 and .08 of the first layer come before those
    of the second, whose queries see all alike: 1/5^2 + 1/6^2 = .068 each, the first ones of them;
    .05 and less of the first layer come behind. With a safeguard of 1 every head keeps 3."""
    scene = replace(oracle_scene(), num_layers=2)
    blind = scene.seen.log()[:, None].repeat(1, 2)
    dull = replace(scene, layer=1, queries=0 * scene.queries, lse=blind)
    wanted = {
        0.0: [[[0, 2, 4, 5], [0, 5]], [[0, 1, 2, 3, 5], [5]]],
        1.0: [[[0, 2, 5], [0, 4, 5]], [[0, 1, 5], [0, 1, 5]]],
    }
    for even, want in wanted.items():
        options = {"window": 2, "kernel": 1, "sinks": 0, "even": even}
        method, cpu = KVCompress(Budget(entries_per_head=3), **options), torch.device("cpu")
        layers = [LayerCache(Tail(2, 2, torch.float32, cpu), torch_backend()) for _ in range(2)]
        pool = Pool(method, layers, scene.geometry)
        for each in (scene, dull):
            pool.take(each)
        pool.finish()
        assert [kept_tokens(layer.segments[0]) for layer in layers] == want


def test_ties_after_pooling_fall_to_the_lower_head_and_the_earlier_token():
    method = AdaKV(Budget(entries_per_head=4), window=2, kernel=3, sinks=0, floor=0.0)
    assert kept_tokens(method.compress(oracle_scene())) == [[1, 2, 4, 5], [0, 1, 4, 5]]


def test_the_toy_of_the_ada_kv_readme():
    even = budgets.uniform(6, [6, 6, 6])
    assert even == [2, 2, 2] and retained(TOY, even) == pytest.approx(2.26)
    for floor in (0.0, 0.2, 0.5):
        shares = budgets.adaptive(TOY, 6, floor)
        assert shares == [4, 1, 1] and retained(TOY, shares) == pytest.approx(2.48)
    assert budgets.mixed(TOY, 6, 0.5) == [3, 2, 1] and budgets.mixed(TOY, 6, 0.2) == [4, 1, 1]


def test_entries_that_do_not_exist_are_never_counted():
    """Even shares: one entry a turn for each head that has one left, the first heads first."""
    gone = float("-inf")
    table = torch.tensor([[gone, gone, 0.1, 0.2], [0.5, 0.6, 0.7, 0.8], [gone, 0.1, 0.1, 0.1]])
    turns = [0, 1, 2, 0, 1, 2, 1, 2, 1]  # heads of 2, 4 and 3 entries
    for total in range(10):
        assert budgets.uniform(total, [2, 4, 3]) == [turns[:total].count(h) for h in range(3)]
        for floor in (0.0, 0.5, 1.0):
            shares = budgets.adaptive(table, total, floor)
            assert sum(shares) == total and shares[0] <= 2 and shares[2] <= 3


def cases(count: int, heads: int, entries: int, seed: int):
    """Random attention tables `[H, N]` in float64 (entries sum to at most 1), totals and floors."""
    dice, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    for _ in range(count):
        h, n = dice.randint(1, heads), dice.randint(1, entries)
        sharp = torch.rand(h, 1, generator=generator, dtype=torch.float64) * 6
        logits = torch.randn(h, n, generator=generator, dtype=torch.float64) * sharp
        share = torch.rand(h, 1, generator=generator, dtype=torch.float64)
        table = logits.softmax(1) * (0.3 + 0.7 * share)
        yield table, dice.randint(0, h * n), dice.choice([0.0, 0.05, 0.2, 0.5, 0.9, 1.0])


def test_adaptive_shares_are_exact_bounded_and_never_worse_than_uniform():
    for table, total, floor in cases(2000, heads=8, entries=40, seed=0):
        heads, entries = table.shape
        shares = budgets.adaptive(table, total, floor)
        sure = min(int(floor * (total // heads)), entries)
        assert sum(shares) == total
        assert sure <= min(shares) and max(shares) <= entries
        even = budgets.uniform(total, [entries] * heads)
        # eps = 2C·sum(1 - F): smaller where more mass is retained
        assert retained(table, shares) >= retained(table, even) - 1e-12


def test_adaptive_shares_are_the_best_of_all_by_brute_force():
    for table, total, floor in cases(300, heads=3, entries=5, seed=1):
        heads, entries = table.shape
        sure = min(int(floor * (total // heads)), entries)
        best = max(
            retained(table, counts)
            for counts in itertools.product(range(sure, entries + 1), repeat=heads)
            if sum(counts) == total
        )
        assert retained(table, budgets.adaptive(table, total, floor)) == pytest.approx(best)


def test_shares_follow_the_heads():
    for table, total, floor in cases(300, heads=6, entries=20, seed=4):
        heads, entries = table.shape
        shares = budgets.adaptive(table, total, floor)
        order = torch.randperm(heads, generator=torch.Generator().manual_seed(heads))
        assert budgets.adaptive(table[order], total, floor) == [shares[i] for i in order]
        louder = table.clone()
        louder[0] *= 3
        assert budgets.adaptive(louder, total, floor)[0] >= shares[0]
        share = total // heads
        same = budgets.adaptive(table[:1].expand(heads, entries), share * heads, floor)
        assert same == [share] * heads
        assert budgets.adaptive(table, share * heads, 1.0) == [share] * heads


def attention(scene) -> torch.Tensor:
    """Weights `[H*G, W, T]` of the window queries, by softmax over all entries that each sees."""
    group = scene.queries.shape[1] // len(scene.keys)
    keys = scene.keys.repeat_interleave(group, 0)
    logits = torch.einsum("whd,hnd->hwn", scene.queries, keys) * scene.scale
    unseen = torch.arange(keys.shape[1]) >= scene.seen[:, None]
    return logits.masked_fill(unseen, float("-inf")).softmax(-1)


def best(scores: torch.Tensor, count: int) -> list[int]:
    return scores.topk(count).indices.tolist()


def grouped(table: torch.Tensor, heads: int) -> torch.Tensor:
    return table.view(heads, -1, *table.shape[1:])


@pytest.mark.parametrize("kernel, kind", [(7, "max"), (5, "avg")])
def test_squared_attention_is_pooled_per_query_head(kernel, kind):
    """KVC-w: softmax, square, window sum, pool per query head, sum over the group."""
    scene = random_scene(2, 4, 90, 8)
    squares = attention(scene).square().mean(dim=1)[:, :82]
    want = grouped(scores.pool(squares, kernel, kind), 2).mean(dim=1)
    assert_close("squared", scores.pooled_mass(scene, 82, kernel, kind, "squared"), want, 1e-5)
    ways = [SnapKV(Budget(fraction=0.3), window=8, score_by=by) for by in ("mass", "squared")]
    assert kept_tokens(ways[0].compress(scene)) != kept_tokens(ways[1].compress(scene))


@pytest.mark.parametrize("group", [1, 4])
def test_projected_norms_are_those_of_the_values_behind_the_output(monkeypatch, group):
    scene = random_scene(3, group, 50, 4)
    monkeypatch.setattr(scores, "NORM_VALUES", 100)
    output = grouped(scene.output, 3)
    projected = [torch.stack([scene.values[h] @ w for w in output[h]]) for h in range(3)]
    want = torch.stack([entries.norm(p=1, dim=-1).mean(0) for entries in projected])
    assert_close("norms", scores.projected_norm(scene, 50), want, 1e-5)
    assert_close("some", scores.projected_norm(scene, 20), want[:, :20], 1e-5)


def test_two_stages():
    """Half of the entries by attention, the rest by (attention + 1e-4) times the norm."""
    scene, window = random_scene(2, 2, 80, 8), 8
    scene = replace(scene, values=torch.randn(2, 80, 8) * torch.rand(2, 80, 1) * 5)
    method = Critical(Budget(entries_per_head=28), window=window, kernel=1, sinks=0)
    mass = grouped(attention(scene).mean(1)[:, :72], 2).mean(1)
    norms = scores.projected_norm(scene, 72)
    for head, entries in enumerate(kept_tokens(method.compress(scene))):
        order = sorted(range(72), key=lambda j, h=head: -mass[h, j])
        sure, rest = order[:10], order[10:]
        rest.sort(key=lambda j, h=head: -(mass[h, j] + 1e-4) * norms[h, j])
        assert entries == sorted([*sure, *rest[:10], *range(72, 80)])
    snap = SnapKV(Budget(entries_per_head=28), window=window, kernel=1, sinks=0).compress(scene)
    assert kept_tokens(snap) != kept_tokens(method.compress(scene))


def test_defensive_mass_is_the_worst_case():
    scene = random_scene(2, 2, 60, 6)
    table = attention(scene)[:, :, :54]  # [H*G, W, N]
    flat = table.reshape(-1, 54)
    smooth = scores.pool(flat, 5, "avg")
    smooth = smooth * (flat.sum(1, keepdim=True) / smooth.sum(1, keepdim=True))
    worst = grouped(smooth.view_as(table), 2).amax(dim=(1, 2))
    want = torch.maximum(worst, worst.mean(dim=1, keepdim=True))
    assert_close("defensive", scores.defensive_mass(scene, 54, 5), want, 1e-5)


def test_entries_that_carry_the_mass_are_secure():
    scene = random_scene(2, 2, 200, 8)
    mean = grouped(attention(scene).mean(1), 2).mean(1)
    table = DefensiveKV(Budget(fraction=0.4), window=8, sinks=0).score(scene, 192, each=72)
    for head in range(2):
        order = mean[head, :192].sort(descending=True, stable=True)
        beyond = 0.9 - float(mean[head, 192:].sum())
        secured = min(int((order.values.cumsum(0) < beyond).sum()), 72)
        infinite = table[head].isinf().nonzero().flatten().tolist()
        assert infinite == sorted(order.indices[:secured].tolist())
    segment = DefensiveKV(Budget(fraction=0.4), window=8, sinks=0).compress(scene)
    assert sum(segment.lengths) == 160


def test_h2o():
    """Sums 3.00 .57 .83 .30 .30; heavy 2, recent 2 keep 0, 2, 3, 4; and the averaged sums."""
    table = torch.tensor([[1, 0, 0, 0, 0], [0.6, 0.4, 0, 0, 0], [0.5, 0.1, 0.4, 0, 0],
                          [0.4, 0.05, 0.35, 0.2, 0], [0.5, 0.02, 0.08, 0.1, 0.3]])  # fmt: skip
    keys = torch.zeros(1, 5, 2)
    scene = replace(prefilled(keys, torch.zeros(1, 1, 2), 1.0), column_mass=table.sum(0)[None])
    assert_close("sums", scene.column_mass[0], torch.tensor([3, 0.57, 0.83, 0.30, 0.30]), 1e-6)
    method = H2O(Budget(entries_per_head=4))
    assert kept_tokens(method.compress(scene)) == [[0, 2, 3, 4]]
    averaged = replace(method, average=True).score(scene, 5, each=2)
    want = torch.tensor([[0.6, 0.1425, 0.2767, 0.15, 0.3]])
    assert float((averaged - want).abs().max()) < 6e-5


def test_tova_and_knorm():
    """TOVA keeps the same tokens in all heads, Knorm the shortest keys of each."""
    scene, budget = random_scene(3, 2, 40, 1), Budget(entries_per_head=10)
    last = attention(scene)[:, 0].mean(0)[:39]
    assert kept_tokens(TOVA(budget).compress(scene)) == [sorted([*best(last, 9), 39])] * 3
    short = [sorted([*best(-row[:39], 9), 39]) for row in scene.keys.norm(dim=-1)]
    assert kept_tokens(Knorm(budget, sinks=0).compress(scene)) == short


def test_expected_attention():
    """No covariance: mu.k / sqrt D; no mean and the identity: |k|^2 / 2D; in general both."""
    scene = random_scene(2, 2, 30, 1)
    keys, dim = scene.keys.repeat_interleave(2, 0), 8

    def score(mean, covariance, epsilon=0.0):
        given = replace(scene, moments=Moments(mean, covariance))
        return ExpectedAttention(sinks=0, epsilon=epsilon).score(given, 30, each=9).exp()

    def want(logits, epsilon=0.0):
        table = grouped(logits.softmax(-1), 2).mean(1) + epsilon
        return table * scene.values.norm(dim=-1)

    mean, zero = scene.moments.mean, torch.zeros(4, dim, dim)
    along = torch.einsum("hd,hnd->hn", mean, keys) / dim**0.5
    assert_close("mean alone", score(mean, zero), want(along), 1e-5)
    eye = torch.eye(dim).expand(4, dim, dim)
    square = keys.square().sum(-1) / (2 * dim)
    assert_close("covariance alone", score(torch.zeros(4, dim), eye), want(square), 1e-5)
    both = along + torch.einsum("hnd,hde,hne->hn", keys, scene.moments.covariance, keys) / (2 * dim)
    got = score(mean, scene.moments.covariance, epsilon=0.1)
    assert_close("both", got, want(both, 0.1), 1e-5)


def test_pyramid_lines():
    """At 32 layers and b = 96 the authors' rounding keeps 3,536 entries of 3,072; ours 3,072."""
    for entries, first in ((96, 188), (224, 437), (480, 936), (992, 1935), (2016, 3932)):
        line = budgets.pyramid(entries, 32, 10**6, beta=20)
        assert sum(line) == 32 * entries
        assert line == sorted(line, reverse=True)
        assert abs(line[0] - first) <= 1 and abs(line[-1] - Fraction(entries, 20)) <= 1
    for entries in range(0, 101):
        for layers in (1, 2, 5, 32):
            line = budgets.pyramid(entries, layers, 100, beta=20)
            assert sum(line) == layers * entries
            assert min(line) >= 0 and max(line) <= 100
    assert budgets.pyramid(7, 3, 100, beta=20) == [14, 7, 0]  # b below beta


def test_layers_of_a_model_keep_the_budget_together():
    for fraction in (0.1, 0.3, 0.6, 0.95):
        for heads, layers, tokens in ((1, 1, 50), (2, 4, 333), (8, 32, 1000)):
            method = PyramidKV(Budget(fraction=fraction))
            geometry = Geometry(tokens, heads, layers, 8, 4)
            entries = method.entries(geometry)
            assert sum(entries) == layers * method.budget.entries(geometry)
            assert max(entries) <= geometry.full
            assert min(entries) >= heads * method.newest(method.budget.entries(geometry) // heads)


def test_absent_entries_change_nothing():
    """A layer whose first entries do not exist keeps what the layer without them keeps."""
    for name in ("snapkv", "adakv", "defensivekv", "criticalkv", "knorm", "tova", "h2o",
                 "expected-attention"):  # fmt: skip
        method = parse_method(name, Budget(entries_per_head=20), ["sinks=0"])
        if hasattr(method, "window"):
            method = replace(method, window=4)
        scene = random_scene(2, 2, 80, window=4)
        position = torch.arange(80).expand(2, -1)
        scene = replace(scene, position=position)
        junk = torch.full((2, 30, 8), 1e3)
        padded = replace(
            scene,
            keys=torch.cat((junk, scene.keys), 1),
            values=torch.cat((junk, scene.values), 1),
            seen=scene.seen + 30,
            column_mass=torch.cat((torch.full((2, 30), 9.0), scene.column_mass), 1),
            position=torch.cat((torch.zeros(2, 30), position), 1),
            absent=torch.tensor([30, 30]),
        )
        got, want = method.compress(padded), method.compress(scene)
        assert kept_tokens(got) == kept_tokens(want), name
        assert torch.equal(got.k, want.k)


@pytest.mark.parametrize("chunk", [7, 2048])
@pytest.mark.parametrize("probed", [False, True])
def test_sums_and_moments_are_those_of_transformers(checkpoint, chunk, probed):
    """Column sums of its attention weights; moments of its query projections before rotation."""
    ids, probe = random_ids(60), random_ids(9, seed=4)
    engine, oracle = load_engine(checkpoint(), chunk=chunk), load_oracle(checkpoint(), "eager")
    recorder = Recorder(Needs(queries=3, column_mass=True, future=16))
    jobs = [Compression(recorder, probes=(0,) if probed else ())]
    drain(engine.prefill(ids, jobs, [probe] if probed else []))
    seen = ids + (probe if probed else [])
    normed: list[torch.Tensor] = []
    for layer in oracle.model.layers:
        layer.self_attn.q_proj.register_forward_hook(lambda _, __, out: normed.append(out[0]))
    with torch.inference_mode():
        weights = oracle(torch.tensor([seen]), output_attentions=True).attentions
        cos, sin = (
            part[0].mean(0)
            for part in oracle.model.rotary_emb(normed[0], torch.arange(60, 76)[None])
        )
        half = len(cos) // 2
        turn = torch.diag(cos)  # the mean rotation as a matrix
        for i in range(half):
            turn[i, i + half], turn[i + half, i] = -sin[i], sin[i]
    for given, table, queries in zip(recorder.shown, weights, normed, strict=True):
        want = grouped(table[0].sum(1)[:, :60], 2).sum(1)
        assert_close("column sums", given.column_mass, want, 1e-5)
        plain = queries[4:].view(len(seen) - 4, 4, 16).transpose(0, 1)  # [H*G, T, D]
        assert_close("mean", given.moments.mean, plain.mean(1) @ turn.T, 1e-4)
        spread = torch.stack([torch.cov(entries.T, correction=0) for entries in plain])
        assert_close("covariance", given.moments.covariance, turn @ spread @ turn.T, 1e-4)
