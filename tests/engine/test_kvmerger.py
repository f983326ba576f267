"""KVMerger (arXiv 2407.08454): hand-worked sets, weights and attention, and the invariants."""

from dataclasses import replace

import pytest
import torch

from kvchat.engine.budget import Budget, Geometry
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.kvmerger import KVMerger, merge
from kvchat.engine.methods.links import best_links, free_links, links_above, run_of, similarity
from kvchat.engine.methods.size_options import VALUES
from kvchat.errors import KvchatError
from kvchat.kernels.reference import dense_attention
from tests.engine.scenes import kept_tokens, prefilled, random_scene
from tests.engine.tiny import torch_backend
from tests.support.closeness import assert_attention, assert_close

K = [[4, 0], [1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1], [-1, 0], [-0.6, -0.8], [-0.8, -0.6]]
V = [[5, 5], [1, 0], [0, 1], [1, 1], [2, 0], [3, 3], [-1, 0], [0, -1]]
A = [5, 0.3, 0.9, 0.4, 0.2, 0.5, 0.1, 0.2]
HALF = Budget(fraction=0.5)
PROTECTED = torch.tensor([[True, *[False] * 6, True]])  # heavy 0, recent 7


def oracle():
    """Eight entries of one head."""
    keys, values = torch.tensor([K]).float(), torch.tensor([V]).float()
    scene = prefilled(keys, torch.zeros(1, 1, 2), 2**-0.5)
    return replace(scene, values=values, column_mass=torch.tensor([A]))


def sets(links: torch.Tensor) -> list[list[int]]:
    run = run_of(links).tolist()
    return [[i for i, r in enumerate(run) if r == number] for number in range(run[-1] + 1)]


def merged(links, sigma=1.0, value="votes"):
    scene = oracle()
    slots = merge(scene, links, scene.column_mass, PROTECTED, sigma, value)
    return slots.segment(1, (0, 8), value)


def by_threshold(eps: float) -> torch.Tensor:
    return links_above(similarity(oracle().keys), free_links(PROTECTED), eps, 0)


BY_EPS = {
    0.75: [[0], [1, 2, 3, 4], [5], [6], [7]],
    0.85: [[0], [1], [2, 3], [4], [5], [6], [7]],
    0.59: [[0], [1, 2, 3, 4], [5, 6], [7]],
    1.01: [[i] for i in range(8)],
}
ALL = [[0], [1, 2, 3, 4, 5, 6], [7]]  # 3 slots are the minimum: five eligible links
BY_SLOTS = {7: BY_EPS[0.85], 5: BY_EPS[0.75], 4: BY_EPS[0.59], 3: ALL, 2: ALL}


def test_sets_by_threshold_and_by_budget():
    delta = similarity(oracle().keys)
    assert_close("delta", delta, torch.tensor([[-1, 1, 0.8, 0.96, 0.8, 0, 0.6, 0.96]]), 1e-6)
    assert {eps: sets(by_threshold(eps)) for eps in BY_EPS} == BY_EPS
    links = {n: best_links(delta, free_links(PROTECTED), 8 - n, 0) for n in BY_SLOTS}
    assert {n: sets(found) for n, found in links.items()} == BY_SLOTS


G = {
    1.0: ((0.636321, 0.591028), (0.904436, 0.568371), (3.617745, 2.273484), 0.868457),
    5.0: ((0.601594, 0.599525), (0.996006, 0.502798), (3.984026, 2.011192), 0.849321),
    0.0: ((0.733077, 0.631724), (0.466928, 0.912003), (1.867711, 3.648010), 0.967717),
    1e9: ((0.6, 0.6), (1.0, 0.5), (4.0, 2.0), 0.848528),
}


@pytest.mark.parametrize("sigma", G)
def test_gaussian_merge(sigma):
    key, value, times_four, norm = G[sigma]
    for kind, want in (("votes", value), ("paper", times_four)):
        segment = merged(by_threshold(0.75), sigma, kind)
        assert segment.count.tolist() == [1, 4, 1, 1, 1]
        assert segment.position.tolist() == [0, 2, 5, 6, 7]  # the pivot's
        assert float((segment.k[1] - torch.tensor(key)).abs().max()) < 1.5e-6
        assert float((segment.v[1] - torch.tensor(want)).abs().max()) < 4e-6
        assert float(segment.k[1].norm()) == pytest.approx(norm, abs=2e-6)


def test_attention():
    q, scene = torch.full((1, 1, 2), 0.5), oracle()
    full, _ = dense_attention(q, scene.keys, scene.values, 2**-0.5, causal=False)
    assert float((full[0, 0] - torch.tensor([2.299950, 2.083578])).abs().max()) < 2e-6
    for value, want in (("votes", (2.264649, 2.094708)), ("paper", (3.648300, 3.374529))):
        got, _ = merged(by_threshold(0.75), 1.0, value).attend(q, 2**-0.5, torch_backend())
        assert float((got[0, 0] - torch.tensor(want)).abs().max()) < 2e-6


def layer(seed: int, heads=2, tokens=120, dim=8):
    """Keys that drift slowly, so that neighbours are similar, and column sums."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(heads, tokens, dim, generator=generator) * 0.5
    scene = random_scene(heads, 2, tokens, 4, seed, dim)
    keys = steps.cumsum(1)
    values = torch.randn(heads, tokens, dim, generator=generator)
    return replace(
        prefilled(keys, scene.queries, scene.scale),
        values=values,
        column_mass=torch.rand(heads, tokens, generator=generator),
    )


def test_nothing_to_merge_is_the_identity():
    scene = layer(0)
    q = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    for method in (KVMerger(mode="eps", eps=1.01), KVMerger(Budget(entries_per_head=120))):
        segment = method.compress(scene)
        assert torch.equal(segment.k.view(2, 120, 8), scene.keys)
        assert torch.equal(segment.v.view(2, 120, 8), scene.values)
        assert segment.bias is None or not segment.bias.any()
        want = dense_attention(q, scene.keys, scene.values, 0.3, causal=False)
        assert_attention(segment.attend(q, 0.3, torch_backend()), want)


HOW = [{"mode": "eps", "eps": 0.8}, *({"sigma": s, "budget": HALF} for s in (0.0, 0.3))]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("how", HOW, ids=str)
def test_every_token_is_in_one_run_and_its_key_within_it(how, value):
    scene = layer(3)
    segment = KVMerger(**how, value=value).compress(scene)
    assert (segment.bias is not None) == (value == "votes")
    if value == "votes":
        assert_close("bias", segment.bias, segment.count.float().log(), 1e-6)
    start = 0
    for head, entries in enumerate(kept_tokens(segment)):
        assert entries == sorted(set(entries))
        token = 0
        for at, pivot in enumerate(entries, start):
            count = int(segment.count[at])
            run = slice(token, token + count)
            assert token <= pivot < token + count
            keys = scene.keys[head, run]
            low, high = keys.amin(0) - 1e-5, keys.amax(0) + 1e-5
            assert bool(((segment.k[at] >= low) & (segment.k[at] <= high)).all())
            if count == 1:
                assert torch.equal(segment.k[at], scene.keys[head, pivot])
                assert torch.equal(segment.v[at], scene.values[head, pivot])
            token += count
        start += len(entries)
        assert token == 120


def test_scaling_keys_keeps_sets_and_relative_sigmas():
    scene = layer(5)
    scaled = replace(scene, keys=scene.keys * 7)
    for sigma, same in ((0.0, True), (1.0, False)):
        method = KVMerger(Budget(fraction=0.4), sigma=sigma)
        one, other = method.compress(scene), method.compress(scaled)
        assert kept_tokens(one) == kept_tokens(other)
        close = torch.allclose(one.v, other.v, atol=1e-4)
        assert close == same, sigma


def test_more_budget_refines():
    for seed in range(5):
        scene = layer(seed, heads=1)
        delta, free = similarity(scene.keys), free_links(torch.zeros(1, 120, dtype=torch.bool))
        coarse = best_links(delta, free, 1, 0)
        for count in range(2, 119):
            more = best_links(delta, free, count, 0)
            assert int(more.sum()) == count and bool((more | ~coarse).all())
            coarse = more
        low, high = links_above(delta, free, 0.5, 0), links_above(delta, free, 0.8, 0)
        assert bool((low | ~high).all())
        assert sets(low) == backward_scan(delta[0].tolist(), 0.5)


def backward_scan(delta: list[float], eps: float) -> list[list[int]]:
    """Algorithm 1 as printed: from the last token to the first."""
    found, run = [], [len(delta) - 1]
    for i in range(len(delta) - 1, 0, -1):
        if delta[i] > eps:
            run.insert(0, i - 1)
        else:
            found.insert(0, run)
            run = [i - 1]
    return [run, *found]


def test_duplicate_keys_with_votes_are_exact():
    """Runs of equal keys: votes are dense attention; paper differs by one ratio in every dim."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1, 6, 4, generator=generator).repeat_interleave(5, 1)
    scene = replace(
        prefilled(keys, torch.zeros(1, 1, 4), 0.5),
        values=torch.randn(1, 30, 4, generator=generator),
        column_mass=torch.rand(1, 30, generator=generator),
    )
    q = torch.randn(3, 1, 4, generator=generator)
    dense, lse = dense_attention(q, scene.keys, scene.values, 0.5, causal=False)
    options = {"mode": "eps", "eps": 0.9999, "recent": 0.0, "heavy": 0.0, "sinks": 0}
    votes = KVMerger(**options).compress(scene)
    assert votes.count.tolist() == [5] * 5 + [4, 1], "the newest entry stays by itself"
    assert_attention(votes.attend(q, 0.5, torch_backend()), (dense, lse))
    paper, _ = KVMerger(**options, value="paper").compress(scene).attend(q, 0.5, torch_backend())
    ratio = paper / dense
    assert_close("one ratio", ratio, ratio[..., :1].expand_as(ratio), 1e-4)
    assert float(ratio.min()) > 1


def test_merging_in_two_steps_is_merging_at_once():
    """{a, b} then {ab, c} equals {a, b, c} for equal keys, in every value mode."""
    generator = torch.Generator().manual_seed(1)
    keys = torch.randn(1, 1, 4, generator=generator).repeat_interleave(3, 1)
    scene = replace(
        prefilled(keys, torch.zeros(1, 1, 4), 0.5),
        values=torch.randn(1, 3, 4, generator=generator),
        column_mass=torch.tensor([[3.0, 2.0, 1.0]]),
    )

    def joined(scene, *links, value):
        none = torch.zeros(1, len(links), dtype=torch.bool)
        return merge(scene, torch.tensor([links]), scene.column_mass, none, 1.0, value)

    for value in VALUES:
        once = joined(scene, False, True, True, value=value)
        first = joined(scene, False, True, False, value=value)
        parts = {n: getattr(first, n)[None] for n in ("count", "position")}
        again = replace(scene, keys=first.k[None], values=first.v[None], **parts)
        twice = joined(replace(again, column_mass=first.mass[None]), False, True, value=value)
        assert twice.count.tolist() == once.count.tolist() == [3]
        assert_close(value, twice.v, once.v, 1e-6)


@pytest.mark.parametrize("most", [2, 3, 16])
def test_runs_have_a_longest(most):
    """Long runs are cut at their weakest links; a budget takes the next strongest instead."""
    for seed in range(5):
        scene = layer(seed)
        delta, free = similarity(scene.keys), free_links(torch.zeros(2, 120, dtype=torch.bool))
        for links in (links_above(delta, free, 0.3, most), best_links(delta, free, 100, most)):
            assert int(torch.bincount(run_of(links)).max()) <= most
        if most > 2:
            assert int(best_links(delta, free, 100, most).sum()) == 100
    delta = torch.tensor([[-1, 0.9, 0.8, 0.7, 0.95]])
    free = torch.tensor([[False, True, True, True, True]])
    assert sets(links_above(delta, free, 0.5, 3)) == [[0, 1, 2], [3, 4]]


def test_budgets_are_pooled_over_heads():
    scene = layer(2)
    smooth = scene.keys.clone()
    smooth[1] = torch.linspace(1, 2, 120)[:, None] * torch.ones(8)  # all the same direction
    segment = KVMerger(HALF).compress(replace(scene, keys=smooth))
    assert segment.lengths[1] < segment.lengths[0], "the similar head merges more"


def test_protected_entries_stay_as_they_are():
    scene = layer(4)
    segment = KVMerger(HALF, recent=0.2, heavy=0.1, sinks=3).compress(scene)
    for head, entries in enumerate(kept_tokens(segment)):
        counts = segment.count[segment.ends[head] : segment.ends[head + 1]].tolist()
        single = {token for token, count in zip(entries, counts, strict=True) if count == 1}
        heavy = scene.column_mass[head, 3:108].topk(6).indices + 3
        assert single >= {0, 1, 2, *range(108, 120), *heavy.tolist()}


def test_skipped_layers_are_made_up_elsewhere():
    geometry = Geometry(tokens=1000, heads=8, layers=32, dim=128, itemsize=2)
    for first, last in ((2, 1), (1, 3)):
        spec = f"kvmerger:skip={first}+{last},budget=50%"
        entries = parse_method(spec).entries(geometry)
        assert sum(entries) == 32 * 4000
        assert entries[:first] == [8000] * first and entries[-last:] == [8000] * last
        assert max(entries[first:-last]) - min(entries[first:-last]) <= 1
        assert max(entries[first:-last]) < 4000
    assert set(parse_method("kvmerger@50").entries(geometry)) == {4000}
    with pytest.raises(KvchatError) as caught:
        parse_method("kvmerger:skip=2+1,budget=50%").entries(replace(geometry, layers=4))
    assert caught.value.tries[1] == "kvmerger:skip=0+0"
    least = Budget.parse(caught.value.tries[0].split()[1])
    parse_method("kvmerger:skip=2+1", least).entries(replace(geometry, layers=4))


WRONG = ["mode=ratio", "sigma=-1", "sigma=wide", "value=mean", "recent=0.8,heavy=0.3",
         "longest=1", "skip=two", "mode=eps,budget=40%"]  # fmt: skip


@pytest.mark.parametrize("spec", [*(f"kvmerger:{text}" for text in WRONG), "kvmerger@70"])
def test_wrong_options_are_refused(spec):
    with pytest.raises(KvchatError, match="kvmerger") as caught:
        parse_method(spec)
    named = spec.replace("@", "budget=").split(",")[-1].split("=", 1)[1]
    assert named in caught.value.message and caught.value.tries


def test_the_paper_s_preset_finds_its_own_size():
    method = parse_method("kvmerger@paper")
    assert (method.mode, method.value, method.eps) == ("eps", "paper", 0.75)
    segment = method.compress(layer(1, tokens=400))
    assert 0 < sum(segment.lengths) < 800 and segment.bias is None
