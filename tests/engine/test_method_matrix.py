"""Every method of the table, on made-up layers and in a model, paired with budgets and geometries:
exact totals, sinks, window, positions, the lossless limit, attention to what is kept alone."""

from dataclasses import replace

import pytest
import torch

from kvchat.engine.budget import Budget, Geometry
from kvchat.engine.events import drain
from kvchat.engine.methods import METHODS, budgets, scores
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.specs import options
from kvchat.engine.methods.window import AdaKV, SnapKV
from kvchat.engine.prefill.prefill import Compression
from kvchat.errors import KvchatError
from tests.engine.scenes import (
    EVICTING,
    KEEPING,
    RETRIEVING,
    bare,
    compressed,
    kept_tokens,
    paired,
    random_scene,
    window_of,
)
from tests.engine.tiny import load_engine, load_oracle, random_ids, read
from tests.support.closeness import assert_close

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


ALLOCATIONS = [(0.0, 1, "max", 1, 4), (0.0, 7, "max", 4, 2), (0.2, 5, "avg", 2, 1),
               (0.2, 7, "max", 4, 2), (1.0, 5, "avg", 4, 2)]  # fmt: skip


@pytest.mark.parametrize("floor, kernel, pool, heads, group", ALLOCATIONS)
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


SMALL = [(4, 1, 16), (4, 2, 16), (4, 4, 16)]  # query heads, KV heads, head dim
SHAPES = [*SMALL, (8, 1, 32), (8, 8, 64), (16, 2, 128)]
TOKENS, NEXT = 140, 6
HALF = Budget(fraction=0.5)
IDS = random_ids(TOKENS + NEXT, seed=5)
SPECS = {  # documents here are short
    "pqcache": "pqcache:dense_below=0,code_bits=4,sinks=3",
    "squeezed": "squeezed:dense_below=0,clusters=0.2,sinks=3,window=8",
    "kcache": "kcache:dense_below=0,sinks=3",
}


@pytest.fixture
def shaped(checkpoint):
    """A model's folder by query heads, KV heads and head dim."""

    def build(shape, **more):
        heads, kv_heads, dim = shape
        shape = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": dim}
        return checkpoint(**shape, **more)

    return build


@pytest.mark.parametrize("name, fraction, shape", paired(KEEPING, [0.05, 0.25, 0.5], SMALL))
def test_entries_are_exact_in_every_layer(shaped, name, fraction, shape):
    engine = load_engine(shaped(shape))
    method = parse_method(name, Budget(fraction=fraction))
    cache, _ = read(engine, IDS[:TOKENS], method)
    heads, layers = engine.config.num_kv_heads, engine.config.num_layers
    wanted = method.entries(Geometry(TOKENS, heads, layers, 16, 4))
    total, kept = layers * round(method.budget.fraction * heads * TOKENS), list(cache.segments())
    assert sum(sum(segment.lengths) for segment in kept) == total
    assert all(segment.span == (0, TOKENS) for segment in kept)
    if not METHODS[name.partition(":")[0]].pools:
        assert [sum(segment.lengths) for segment in kept] == wanted
    assert (cache.position, cache.frozen) == (TOKENS, TOKENS)
    assert all(layer.tail.capacity == 0 for layer in cache.layers), "dense entries are gone"


def test_a_budget_is_shared_out_once_for_all_layers(checkpoint, monkeypatch):
    calls = []
    pyramid = budgets.pyramid
    monkeypatch.setattr(budgets, "pyramid", lambda *given: calls.append(1) or pyramid(*given))
    engine = load_engine(checkpoint(num_hidden_layers=6))
    read(engine, IDS[:97], parse_method("pyramidkv", Budget(fraction=0.37)))
    assert len(calls) == 2, "before the prefill, and for its layers"


@pytest.mark.parametrize(
    "name, budget, shape", paired(RETRIEVING, ["5%", "25%", "50%", "24KiB"], SMALL, times=4)
)
def test_what_is_kept_is_everything_and_what_is_read_is_the_budget(shaped, name, budget, shape):
    engine = load_engine(shaped(shape))
    method = parse_method(SPECS[name], Budget.parse(budget))
    cache, _ = read(engine, IDS[:TOKENS], method)
    heads, layers = engine.config.num_kv_heads, engine.config.num_layers
    geometry = Geometry(TOKENS, heads, layers, 16, 4)
    wanted = method.budget.entries(geometry) // heads
    assert method.entries(geometry) == [TOKENS * heads] * layers
    assert (cache.position, cache.frozen) == (TOKENS, TOKENS)
    assert cache.kept == TOKENS * heads * layers
    for layer in cache.layers:
        (segment,) = layer.segments
        assert segment.lengths == (TOKENS - layer.tail.length,) * heads
        q = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
        chosen = segment.choose(q, 0.25)
        for entries in chosen.tolist():
            found = [entry for entry in entries if entry >= 0]
            assert found == sorted(set(found)) and max(found, default=0) < segment.items
        index = method.index_entries(wanted, geometry)
        assert segment.reads.sinks + segment.reads.count + layer.tail.length + index == wanted
        assert (index > 0) == (name == "squeezed")
        assert name == "squeezed" or chosen.shape[1] == segment.reads.count


@pytest.mark.parametrize(
    "name, budget, shape", paired(list(METHODS), ["100%", "140", "4096", "1GiB"], SHAPES)
)
def test_a_budget_for_everything_is_lossless(shaped, name, budget, shape):
    """Groups of 1 to 8, head dims up to 128."""
    engine, spec = load_engine(shaped(shape)), SPECS.get(name, name)
    caches = [
        read(engine, IDS[:TOKENS], method)[0]
        for method in (parse_method("full"), parse_method(spec, Budget.parse(budget)))
    ]
    want, got = (drain(engine.extend(cache, IDS[TOKENS:])) for cache in caches)
    assert_close("logits", got, want, 1e-6)
    half, _ = read(engine, IDS[:TOKENS], parse_method(SPECS.get(name, bare(name)), HALF))
    assert name == "less" or half.kept in (caches[0].kept / 2, caches[0].kept)
    assert bool(torch.isfinite(drain(engine.extend(half, IDS[TOKENS:]))).all())


@pytest.mark.parametrize("name, shape", paired([n for n in KEEPING if n != "full"], SMALL))
def test_bytes_that_are_used_stay_within_the_budget(shaped, name, shape):
    """Positions, entry ranges and whatever else `memory()` counts are paid from the budget."""
    engine = load_engine(shaped(shape))
    entry = 2 * 16 * 4 + 4
    spec = f"{name}:window=4" if "window" in options(name.partition(":")[0]) else name
    for size in [12000, *range(15000, 15000 + 2 * entry, 24), 20000]:
        cache, _ = read(engine, IDS[:TOKENS], parse_method(spec, Budget(bytes=size)))
        assert cache.memory().total <= size
        assert cache.memory().total > size - 2 * 2 * entry, "and what fits is kept"


@pytest.mark.parametrize(
    "name, budget, shape", paired(["full", *EVICTING], ["20%", "50%", "100%"], SMALL)
)
def test_later_tokens_see_the_kept_entries_at_their_true_positions(shaped, name, budget, shape):
    """One layer, so that transformers with a mask per head is an oracle for evicted entries too."""
    query_heads, kv_heads, _ = shape
    folder = shaped(shape, num_hidden_layers=1)
    engine = load_engine(folder, chunk=50)
    cache, _ = read(engine, IDS[:TOKENS], parse_method(name, Budget.parse(budget)))
    total = TOKENS + NEXT
    visible = torch.ones(query_heads, total, total, dtype=torch.bool).tril()
    for head, entries in enumerate(kept_tokens(next(cache.segments()))):
        evicted = sorted(set(range(TOKENS)) - set(entries))
        group = query_heads // kv_heads
        for query_head in range(head * group, (head + 1) * group):
            visible[query_head, TOKENS:, evicted] = False
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    with torch.inference_mode():
        oracle = load_oracle(folder, "eager")
        want = oracle(torch.tensor([IDS]), attention_mask=mask[None]).logits[0]
    assert_close("extend", drain(engine.extend(cache, IDS[TOKENS : total - 1])), want[-2], 1e-5)
    assert_close("decode", drain(engine.extend(cache, IDS[-1:])), want[-1], 1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_tokens_one_by_one_equal_tokens_together(engine, name):
    method = parse_method(SPECS.get(name, name), Budget(fraction=0.3))
    together, _ = read(engine, IDS[:TOKENS], method)
    # where each token chooses what it reads, those entries are all of them here
    one = parse_method(SPECS.get(name, name), Budget(fraction=1.0 if name in RETRIEVING else 0.3))
    apart, _ = read(engine, IDS[:TOKENS], one)
    for token in IDS[TOKENS:]:
        logits = drain(engine.extend(apart, [token]))
    # fp32 sums of the same numbers in another order, over all layers
    assert_close("logits", logits, drain(engine.extend(together, IDS[TOKENS:])), 5e-6)


@pytest.mark.parametrize("name", METHODS)
def test_short_documents_answer(engine, name):
    spec = SPECS.get(name, name)
    for tokens in (1, 2, 5, 31, 32, 33):
        more = IDS[tokens : tokens + 2]
        for budget in (Budget(fraction=0.3), Budget(entries_per_head=40)):
            cache, _ = read(engine, IDS[:tokens], parse_method(spec, budget))
            got = drain(engine.extend(cache, more))
            assert bool(torch.isfinite(got).all())
        full, _ = read(engine, IDS[:tokens])  # what 40 entries keep
        assert_close("logits", got, drain(engine.extend(full, more)), 1e-6)


@pytest.mark.parametrize("name, chunk", paired(list(METHODS), [1, 9, 64]))
def test_the_chunk_size_does_not_matter(checkpoint, name, chunk):
    method = parse_method(SPECS.get(name, name), Budget(fraction=0.4))
    want, want_logits = read(load_engine(checkpoint(), chunk=2048), IDS[:90], method)
    got, logits = read(load_engine(checkpoint(), chunk=chunk), IDS[:90], method)
    assert_close("logits", logits, want_logits, 1e-5)
    for mine, other in zip(got.segments(), want.segments(), strict=True):
        assert mine.lengths == other.lengths
        usual = "codes" if name in RETRIEVING else "position"
        part = {"kcache": "reads", "qaq": "16.position", "less": "entries.position"}.get(
            name, usual
        )
        assert torch.equal(mine.tensors()[part], other.tensors()[part])


@pytest.mark.parametrize("name", [n for n in EVICTING if "window" in options(n.partition(":")[0])])
def test_a_budget_below_what_always_stays_is_refused_before_the_prefill(engine, name):
    spec = f"{name}:window=32"
    prefill = engine.prefill(IDS, [Compression(parse_method(spec, Budget(entries_per_head=30)))])
    with pytest.raises(KvchatError) as caught:
        next(prefill)
    assert caught.value.details == {"entries": 30, "needed": 37}
    assert caught.value.tries == ("--budget 37 or more", f"{name}:window=25")
    drain(engine.prefill(IDS, [Compression(parse_method(spec, Budget(entries_per_head=37)))]))
    smaller = parse_method(caught.value.tries[1], Budget(entries_per_head=30))
    drain(engine.prefill(IDS, [Compression(smaller)]))


def test_a_short_document_with_a_long_probe_is_intact(engine):
    """The room for the probe is not part of the document's entries."""
    for tokens in (1, 2, 9):
        want, _ = read(engine, IDS[:tokens])
        probed = drain(engine.prefill(IDS[:tokens], [Compression(Full())], [IDS[:40]])).caches[0]
        assert probed.memory() == want.memory()
        logits = [drain(engine.extend(c, IDS[50:53])) for c in (probed, want)]
        assert_close("logits", *logits, 1e-6)
