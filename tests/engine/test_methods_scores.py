"""Scores against formulas written out with materialised attention, and hand-worked oracles."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from kvchat.engine.budget import Budget, Geometry
from kvchat.engine.events import drain
from kvchat.engine.methods import budgets, scores
from kvchat.engine.methods.adakv import PyramidKV, SnapKV
from kvchat.engine.methods.base import Moments
from kvchat.engine.methods.criticalkv import Critical
from kvchat.engine.methods.defensivekv import DefensiveKV
from kvchat.engine.methods.expected_attention import ExpectedAttention
from kvchat.engine.methods.needs import Needs
from kvchat.engine.methods.simple import H2O, TOVA, Knorm
from kvchat.engine.methods.spec import parse_method
from kvchat.engine.prefill.prefill import Compression
from tests.engine.scenes import Recorder, kept_tokens, prefilled, random_scene
from tests.engine.tiny import load_engine, load_oracle, random_ids
from tests.support.closeness import assert_close


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


def test_the_bound_holds():
    """|y - y'| <= sum A n - (2 - 1/sigma) * sum over kept A n, for any kept set of mass sigma."""
    generator = torch.Generator().manual_seed(7)
    for _ in range(1000):
        entries = int(torch.randint(2, 12, (1,), generator=generator))
        share = (3 * torch.randn(entries, generator=generator, dtype=torch.float64)).softmax(0)
        projected = torch.randn(entries, 5, generator=generator, dtype=torch.float64)
        kept = torch.rand(entries, generator=generator) < 0.6
        kept[int(share.argmax())] = True
        norms, sigma = projected.abs().sum(1), share[kept].sum()
        loss = (share @ projected - share[kept] @ projected[kept] / sigma).abs().sum()
        weighed = share * norms
        assert loss <= weighed.sum() - (2 - 1 / sigma) * weighed[kept].sum() + 1e-12


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
