"""Attention Matching (`frontier.md` 2.7): its oracles, and the promise of the held-out queries."""

from dataclasses import replace
from math import exp

import pytest
import torch

from kvchat.engine.budget import Budget
from kvchat.engine.events import drain
from kvchat.engine.methods import matching
from kvchat.engine.methods.base import Evidence
from kvchat.engine.methods.matching import fit, refitted, weights
from kvchat.engine.methods.naming import method_options
from kvchat.engine.methods.needs import REPEAT
from kvchat.engine.methods.refit import Refit
from kvchat.engine.methods.snapkv import SnapKV
from kvchat.engine.methods.spec import parse_method
from kvchat.engine.prefill.prefill import Compression
from kvchat.engine.prefill.replay import Replay
from kvchat.errors import KvchatError
from kvchat.kernels.reference import dense_attention
from tests.engine.scenes import compressed, random_scene
from tests.engine.tiny import load_engine, random_ids, torch_backend
from tests.support.closeness import assert_close


def layer(entries: int, queries: int, seed: int, dim: int = 8):
    """Keys, values, queries, what they read, and the share `[n, entries]` of each entry."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(entries, dim, generator=generator) for _ in range(2))
    q = 3 * torch.randn(queries, dim, generator=generator)
    share = (q @ keys.T / dim**0.5).softmax(-1)
    return keys, values, q, share @ values, share


def test_one_of_two_equal_keys_counts_twice(monkeypatch):
    """B = 2, V' = (v1 + v2) / 2, exactly."""
    monkeypatch.setattr(matching, "RIDGES", (1e-7,))
    _, values, _, _, share = layer(12, 200, seed=1)
    share[:, 1] = share[:, 0]  # two keys alike
    share /= share.sum(dim=1, keepdim=True)
    wanted = share @ values
    weight, fitted = fit(share[:, 1:], values[1:], wanted, also_values=True)
    assert_close("B", weight, torch.tensor([2.0] + [1.0] * 10), 1e-3)
    assert_close("V'", fitted[0], (values[0] + values[1]) / 2, 2e-3)
    assert_close("others", fitted[1:], values[2:], 2e-3)


@pytest.mark.parametrize("also_values", [False, True])
def test_all_rows_are_left_as_they_are(also_values):
    _, values, _, wanted, share = layer(20, 100, seed=2)
    weight, fitted = fit(share, values, wanted, also_values)
    assert_close("B", weight, torch.ones(20), 1e-4)
    assert_close("V'", fitted, values, 1e-3)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kept", [1, 3, 17, 60])
def test_held_out_queries_never_read_worse(seed, kept):
    """Neither output nor log-sum-exp, whatever was fitted; most heads read better."""
    _, values, _, wanted, share = layer(64, 300, seed)
    entries = torch.randperm(64, generator=torch.Generator().manual_seed(seed))[:kept]
    share, values = share[:, entries], values[entries]
    weight, fitted = fit(share, values, wanted, also_values=True)
    held = torch.arange(300) // matching.RUN % matching.HELD == matching.HELD - 1

    def errors(w, v):
        read = share[held] * w
        mass = read.sum(1, keepdim=True)
        return (read @ v / mass - wanted[held]).square().mean(), mass.log().square().mean()

    before, after = errors(torch.ones(kept), values), errors(weight, fitted)
    assert all(a <= b * (1 + 1e-5) for a, b in zip(after, before, strict=True))
    assert float(weight.min()) >= exp(-3) * 0.999
    assert float(weight.max()) <= exp(3) * 1.001
    if kept == 17:
        assert after[1] < 0.5 * before[1], "mass was missing, and is restored"


def test_what_no_query_looks_at_stays():
    share = torch.zeros(40, 3)
    share[:, 0] = 0.5
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    wanted = values[0] + torch.ones(40, 4)
    moved = refitted(share, values, wanted, 0.01)
    assert torch.equal(moved[1:], values[1:])
    assert float(weights(share, 0.01)[0]) == pytest.approx(2, rel=0.02)
    assert weights(share, 0.01)[1:].tolist() == [2, 2], "as all together"


def test_too_few_queries_and_broken_ones_change_nothing():
    _, values, _, wanted, share = layer(10, 24, seed=3)
    weight, fitted = fit(share[:, :4], values[:4], wanted, also_values=True)
    assert weight.tolist() == [1] * 4
    assert torch.equal(fitted, values[:4])
    _, values, _, wanted, share = layer(10, 100, seed=3)
    share[3] = float("nan")
    weight, fitted = fit(share[:, :4], values[:4], wanted, also_values=True)
    assert weight.tolist() == [1] * 4
    assert torch.equal(fitted, values[:4])


@pytest.mark.parametrize("spec", ["snapkv:window=4,", "kvmerger:"])
def test_the_layer_reads_more_like_before(spec):
    """Of a segment: lse and output of unseen queries are nearer to the whole layer's."""
    generator = torch.Generator().manual_seed(7)
    q = torch.randn(600, 4, 8, generator=generator)
    values = torch.randn(2, 96, 8, generator=generator)
    scene = replace(random_scene(2, 2, 96, 4, seed=5), values=values)
    keys, scale = scene.keys, scene.scale
    read = dense_attention(q[:400], keys, values, scale, causal=False)
    evidence = Evidence(q[:400], *read)
    scene = replace(scene, retold=replace(scene.retold, evidence=evidence))
    o, lse = dense_attention(q[400:], keys, values, scale, causal=False)
    errors = {}
    for part in ("no", "bias", "all"):
        method = parse_method(f"{spec}refit={part}", Budget(fraction=0.3))
        got = compressed(method, scene).attend(q[400:], scale, torch_backend())
        errors[part] = [float((x - y).square().mean()) for x, y in zip(got, (o, lse), strict=True)]
    assert errors["bias"][1] < 0.7 * errors["no"][1]
    assert errors["all"][0] < errors["no"][0]


def test_a_bias_is_paid_from_a_budget_in_bytes():
    plain, fitted = (parse_method(f"snapkv:refit={p}", Budget(bytes=10**5)) for p in ("no", "bias"))
    scene = random_scene(2, 1, 2000, 32, seed=1)
    held = [compressed(method, scene) for method in (plain, fitted)]
    assert all(segment.memory().total <= 10**5 for segment in held)
    assert sum(held[1].lengths) < sum(held[0].lengths)
    assert held[1].bias is not None


def test_specs():
    method = parse_method("adakv:refit=all,bits=8")
    assert method_options(method) | {"refit": "all", "bits": 8} == method_options(method)
    assert isinstance(method.method, Refit)
    with pytest.raises(KvchatError, match="refit=yes is none of no, bias, all"):
        parse_method("adakv:refit=yes")
    assert parse_method("snapkv:refit=no") == SnapKV()


def test_what_is_not_told_is_read_as_it_is(checkpoint):
    """A text without a sentence gives no questions; the bare text stands for them."""
    engine, ids = load_engine(checkpoint()), random_ids(40, seed=1)
    method = parse_method("kvzip:refit=bias", Budget(fraction=0.5))
    told = [Replay((REPEAT, 512), (ids,), 0, 40)]
    cache = drain(engine.prefill(ids, [Compression(method)], replays=told)).caches[0]
    assert all(segment.bias is not None for segment in cache.segments())
