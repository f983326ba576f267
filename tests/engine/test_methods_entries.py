"""Which entries a method keeps of one layer, for every entry of METHODS: exact totals, sinks,
window, short documents and every form of budget.
"""

from dataclasses import replace

import pytest
import torch

from kvchat.engine.budget import Budget
from kvchat.engine.methods import METHODS, scores
from kvchat.engine.methods.adakv import AdaKV, SnapKV
from kvchat.engine.methods.spec import parse_method
from kvchat.errors import KvchatError
from tests.engine.scenes import (
    EVICTING,
    KEEPING,
    compressed,
    kept_tokens,
    paired,
    random_scene,
    window_of,
)

FORMS = ["25%", "3%", "99%", "100%", "1", "8", "33", "2k", "300B", "1KiB", "2.5kB", "100MiB"]
ROW_BYTES = 2 * 8 * 4 + 4  # key, value and position of an entry of random_scene


@pytest.mark.parametrize("name, form", paired(KEEPING, FORMS, times=3))
def test_every_budget_is_exact_or_an_error_with_numbers(name, form):
    """Documents of 1 to 40 tokens; what the error proposes works."""
    method = parse_method(name, Budget.parse(form))
    heads, worked = 2, 0
    for tokens in range(1, 41):
        scene = random_scene(heads, 2, tokens, window_of(method))
        try:
            segment = compressed(method, scene)
        except KvchatError as error:
            assert error.code == "usage"
            assert str(method.budget) in error.message
            assert error.details["entries"] < error.details.get("needed", heads)
            assert error.tries, "there is a way out"
            for text in error.tries:
                words = text.split()
                if words[0] == "--budget":
                    proposed = parse_method(name, Budget.parse(words[1]))
                else:
                    proposed = parse_method(words[0], method.budget)
                assert min(compressed(proposed, scene).lengths) >= 1
            continue
        worked += 1
        budget, full = method.budget, heads * tokens
        if budget.fraction is not None:
            want = max(round(budget.fraction * full), heads)
        elif budget.entries_per_head is not None:
            want = min(budget.entries_per_head * heads, full)
        else:
            want = sum(segment.lengths)
            left = budget.bytes - segment.memory().total
            assert left >= 0
            entry = ROW_BYTES + (0 if name in EVICTING else 8)  # bias and count of merged entries
            assert want == full or left < 2 * entry, "what fits is kept"
        assert sum(segment.lengths) == want
        assert min(segment.lengths) >= 1
        for entries in kept_tokens(segment):
            assert entries == sorted(set(entries)), "in time order, none twice"
            assert tokens - 1 in entries, "the newest entry stays"
        if name in EVICTING:
            assert torch.equal(segment.v[:, 0].int(), segment.position)
    assert worked > 0


@pytest.mark.parametrize(
    "name, form", paired(EVICTING, ["10%", "25%", "50%", "90%", "40", "64"], times=2)
)
def test_sinks_and_the_last_entries_stay_in_every_head(name, form):
    method = parse_method(name, Budget.parse(form))
    for heads, group, tokens in ((2, 2, 200), (3, 1, 101), (1, 8, 97)):
        segment = compressed(method, random_scene(heads, group, tokens, window_of(method)))
        each = sum(segment.lengths) // heads
        window = method.newest(each)
        for entries in kept_tokens(segment):
            assert entries[: method.sinks] == list(range(method.sinks))
            assert entries[-window:] == list(range(tokens - window, tokens))


@pytest.mark.parametrize(
    "floor, kernel, pool, heads, group",
    [
        (0.0, 1, "max", 1, 4),
        (0.0, 7, "max", 4, 2),
        (0.2, 5, "avg", 2, 1),
        (0.2, 7, "max", 4, 2),
        (1.0, 5, "avg", 4, 2),
    ],
)
def test_adakv_keeps_the_best_entries_of_every_head(heads, group, kernel, pool, floor):
    """A head keeps a prefix of its ranking; beyond floors, what is kept beats what is not."""
    window, tokens = 8, 120
    options = {"kernel": kernel, "pool": pool, "floor": floor, "sinks": 0}
    method = AdaKV(Budget(fraction=0.3), window=window, **options)
    for seed in range(5):
        scene = random_scene(heads, group, tokens, window, seed)
        segment = compressed(method, scene)
        table = scores.pooled_mass(scene, tokens - window, kernel, pool, "mass")
        order, total = scores.ranked(table).tolist(), round(0.3 * heads * tokens)
        prefix = total - heads * window
        sure = int(floor * (prefix // heads))
        lowest, highest = float("inf"), float("-inf")
        for head, entries in enumerate(kept_tokens(segment)):
            capacity = len(entries) - window
            assert entries[-window:] == list(range(tokens - window, tokens))
            assert set(entries[:-window]) == set(order[head][:capacity])
            assert sure <= capacity <= tokens - window
            if capacity > sure:
                lowest = min(lowest, float(table[head, order[head][capacity - 1]]))
            if capacity < tokens - window:
                highest = max(highest, float(table[head, order[head][capacity]]))
        assert sum(segment.lengths) == total
        assert lowest >= highest


def test_snapkv_is_adakv_with_every_entry_sure():
    options = {"budget": Budget(entries_per_head=20), "window": 8}
    for seed in range(5):
        scene = random_scene(4, 2, 90, 8, seed)
        snap = SnapKV(**options).compress(scene)
        assert snap.lengths == (20,) * 4
        assert kept_tokens(AdaKV(**options, floor=1.0).compress(scene)) == kept_tokens(snap)


def test_streamingllm_keeps_sinks_and_the_newest_at_positions_from_the_start_on():
    method = parse_method("streamingllm:sinks=3,budget=10")
    segment = method.compress(replace(random_scene(2, 1, 50, 1), start=100))
    assert kept_tokens(segment) == [[0, 1, 2, *range(43, 50)]] * 2
    assert segment.position.tolist() == [100, 101, 102, *range(143, 150)] * 2
    assert segment.span == (100, 150)


def test_a_method_does_not_write_into_what_it_reads():
    for name in METHODS:
        method = parse_method(name)
        scene = random_scene(2, 2, 100, window_of(method))
        before = {n: getattr(scene, n).clone() for n in ("keys", "values", "queries", "lse")}
        method.compress(scene)
        assert all(torch.equal(getattr(scene, n), t) for n, t in before.items())
