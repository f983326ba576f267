"""Scores and shares: the numeric oracles of the Ada-KV specification, and its theory as properties
of thousands of random cases in float64."""

import itertools
import random

import pytest
import torch

from kvchat.engine.budget import Budget
from kvchat.engine.methods import budgets, scores
from kvchat.engine.methods.adakv import AdaKV, SnapKV
from kvchat.engine.methods.spec import parse_method
from tests.engine.scenes import kept_tokens, oracle_scene
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


def test_the_bound_of_ada_kv_holds():
    """|y - y'|_1 <= 2·sum C_i (1 - F_i) <= eps, with F_i > 0 (the window is always kept)."""
    generator = torch.Generator().manual_seed(3)
    for table, total, floor in cases(1000, heads=4, entries=12, seed=2):
        heads, entries = table.shape
        attention = table / table.sum(dim=1, keepdim=True)
        values = torch.randn(heads, entries, 3, generator=generator, dtype=torch.float64)
        out = torch.randn(heads, 3, 5, generator=generator, dtype=torch.float64)
        projected = values @ out  # [H, N, model]
        total = max(total, heads)
        shares = torch.tensor(budgets.adaptive(attention, total, floor)).clamp_min(1)
        kept = torch.zeros(heads, entries, dtype=torch.float64)
        rank = torch.arange(entries) < shares[:, None]
        kept.scatter_(1, scores.ranked(attention), rank.double())
        mass = (kept * attention).sum(dim=1)  # F
        exact = torch.einsum("hn,hnm->m", attention, projected)
        pruned = torch.einsum("hn,hnm->m", kept * attention / mass[:, None], projected)
        norm = projected.abs().sum(dim=-1).max(dim=1).values  # C
        tight = 2 * (norm * (1 - mass)).sum()
        assert (exact - pruned).abs().sum() <= tight + 1e-9
        assert tight <= 2 * norm.max() * (1 - mass).sum() + 1e-9


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
