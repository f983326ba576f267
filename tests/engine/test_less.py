"""LESS: the state of what was evicted by hand, its price, its maps, and where it goes along."""

from math import erf, exp, log, sqrt

import pytest
import torch
from safetensors.torch import load_file

from kvchat.calibrate import run as calibrate
from kvchat.calibrate.settings import MAPS, Settings
from kvchat.engine import features, gates
from kvchat.engine.budget import Budget
from kvchat.engine.cache import low_rank
from kvchat.engine.cache.low_rank import Answers, Asks, Features, LowRankSegment, State
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.events import drain
from kvchat.engine.features import fit
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.less import Less
from kvchat.engine.prefill.prefill import Compression
from kvchat.engine.sizes import RANK, Streamed
from kvchat.errors import KvchatError
from kvchat.hub.find import find_model
from tests.engine.scenes import random_scene
from tests.engine.scripted import new_session
from tests.engine.tiny import load_engine, random_features, random_ids, read, torch_backend
from tests.support.closeness import assert_close

IDS = random_ids(160)


def g(x: float) -> float:
    """GELU."""
    return x / 2 * (1 + erf(x / sqrt(2)))


def only(*numbers: float) -> list[torch.Tensor]:
    return [torch.tensor([[[number]]]) for number in numbers]


def test_the_papers_equation_by_hand():
    """One feature, heads of one number: a kept key beside two that are gone, one query."""
    (a, b), (c, d, e) = (0.7, 1.1), (-0.4, 0.9, 1.5)
    maps = Features(Asks(*only(a, b), torch.tensor([log(2.0)])), Answers(*only(c, d, e)))
    keys, values, q, scale = [1.0, -2.0, 0.5], [3.0, -1.0, 2.0], 0.8, 0.5
    phi = 2 * abs(g(g(q * a) * b))
    psi = [abs(g(g(k * c) * d) * e) for k in keys]
    h, z = psi[1] * values[1] + psi[2] * values[2], psi[1] + psi[2]
    own = exp(scale * q * keys[0])
    store_k, store_v = (torch.tensor(x)[None, :, None] for x in (keys, values))
    gone = torch.tensor([[False, True, True]])
    state = State.of(maps, store_k, store_v, gone)
    assert float(state.total) == pytest.approx(h) and float(state.mass) == pytest.approx(z)
    segment = LowRankSegment(FlatSegment.keep(store_k, store_v, ~gone, 0), state)
    o, lse = segment.attend(torch.tensor([[[q]]]), scale, torch_backend())
    assert float(o) == pytest.approx((own * values[0] + phi * h) / (own + phi * z), rel=1e-5)
    assert float(lse) == pytest.approx(log(own + phi * z), rel=1e-5)
    assert segment.memory().total == segment.entries.memory().total + 8


def test_heads_share_the_state_of_their_kv_head(monkeypatch):
    """Two KV heads with three query heads each, in slices, against sums written out."""
    monkeypatch.setattr(low_rank, "SLICE", 7)
    (maps,) = random_features(1, 2, 3, 16)
    generator = torch.Generator().manual_seed(1)
    keys, values = torch.randn(2, 2, 20, 16, generator=generator)
    q, gone = torch.randn(5, 6, 16, generator=generator), torch.rand(2, 20) > 0.4
    o, lse = State.of(maps, keys, values, gone).attend(q)
    psi, phi = maps.answers(keys), maps.asks(q)
    for t in range(5):
        for head in range(6):
            kv = head // 3
            weights = (psi[kv] @ phi[t, head]) * gone[kv] * maps.asks.shift[head].exp()
            assert torch.allclose(lse[t, head], weights.sum().log(), atol=1e-5)
            assert torch.allclose(o[t, head], weights @ values[kv] / weights.sum(), atol=1e-5)


@pytest.mark.parametrize("spec", ["less", "less@lambda"])
@pytest.mark.parametrize("size", [9000, 12000, 20000])
def test_entries_and_state_stay_within_the_budget(engine, spec, size):
    cache, _ = read(engine, IDS, parse_method(spec, Budget(bytes=size)))
    segments = list(cache.segments())
    assert all(isinstance(segment, LowRankSegment) for segment in segments)
    assert 0.8 * size < cache.memory().total <= size
    state = 4 * RANK * (16 + 1) * 2
    assert [segment.state.memory().total for segment in segments] == [state] * 2


@pytest.mark.parametrize("spec", ["less:sparse=snapkv", "less:sparse=adakv", "less:bits=8"])
def test_other_entries_beside_the_state(engine, spec):
    """Of another sparse method, or in few bits: as many as with H2O."""
    ids = random_ids(400)
    cache, _ = read(engine, ids, parse_method(spec, Budget(fraction=0.4)))
    for segment in cache.segments():
        assert segment.entries.kind == ("quantized" if "bits" in spec else "flat")
        assert 0.3 * 800 < sum(segment.lengths) < 0.4 * 800
    assert engine.score(cache, IDS[:5]).isfinite().all()


def test_what_stays_is_what_the_sparse_method_keeps():
    scene = random_scene(2, 2, 200, 8, dim=16)
    method = Less(Budget(entries_per_head=60), sinks=2)
    entries = method.entries(scene.geometry)[0]
    segment = method.compress(scene)
    alone = method.inner.reduce(scene, entries)
    assert torch.equal(segment.entries.position, alone.position)
    assert sum(segment.lengths) == entries == 120 - -(-4 * RANK * 17 * 2 // (2 * 16 * 4 + 4))
    gone = ~method.inner.kept(scene, entries)
    assert int(gone.sum()) == 400 - entries
    want = State.of(scene.features, scene.keys, scene.values, gone)
    assert torch.equal(segment.state.total, want.total)


def test_no_state_where_it_would_take_more_than_half():
    scene = random_scene(2, 2, 40, 8, dim=16)
    for each in (6, 40):
        segment = Less(Budget(entries_per_head=each)).compress(scene)
        assert isinstance(segment, FlatSegment) and sum(segment.lengths) == 2 * each


def test_without_maps_it_is_refused(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(gates, "folder", lambda: tmp_path)
    monkeypatch.setattr(features, "folder", lambda: tmp_path)
    engine = load_engine(checkpoint())
    vars(engine)["features"] = features.find(engine.model)
    with pytest.raises(KvchatError) as refused:
        read(engine, IDS, parse_method("less"))
    assert refused.value.code == "usage"
    assert any("--for less" in way for way in refused.value.tries)


@pytest.mark.parametrize("limit", [160, 900])
def test_parts_of_a_long_document_have_one_state(engine, limit):
    """Its sums are those of all parts; where nothing moves, those of the document in one piece."""
    ids = random_ids(400)
    how = Streamed(len(ids), limit)
    method = parse_method("less:budget=60%")
    cache = drain(engine.stream(ids, Compression(method), how)).caches[0]
    for segment in cache.segments():
        assert isinstance(segment, LowRankSegment) and segment.span == (0, 400)
    assert engine.score(cache, IDS[:5]).isfinite().all()
    if len(how.parts) == 1:
        whole, _ = read(engine, ids, method)
        assert_close("logits", engine.score(cache, IDS[:5]), engine.score(whole, IDS[:5]))


def test_maps_are_kept_by_the_digest_of_the_model(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "folder", lambda: tmp_path)
    engine, other = load_engine(checkpoint()), load_engine(checkpoint(seed=3))
    assert features.find(engine.model) is None
    path = tmp_path / f"{gates.digest_of(engine.model)}{features.SUFFIX}"
    features.save(path, engine.features, {"model": "tiny"})
    found = features.find(load_engine(checkpoint(), "bf16").model)
    assert found is not None and features.load(path)[1] == {"model": "tiny"}
    for mine, own in zip(found, engine.features, strict=True):
        for got, want in zip(features.flat(mine), features.flat(own), strict=True):
            assert torch.allclose(got, want, rtol=1e-2)
    assert features.find(other.model) is None
    features.save(path, [random_features(1, 2, 1, 16)[0]] * 2, {})  # of another shape
    assert features.find(engine.model) is None


def shown(tokens: int, monkeypatch) -> list[fit.Example]:
    """A layer whose queries agree: attention to what is gone matters, and can be learnt."""
    monkeypatch.setattr(fit, "LATER", 40)
    generator = torch.Generator().manual_seed(4)
    keys, values = 0.5 * torch.randn(2, 2, tokens, 16, generator=generator)
    queries = 0.5 * torch.randn(10, 4, 16, generator=generator)
    seen = torch.arange(tokens - 40, tokens, 4) + 4
    mass = torch.rand(2, tokens, generator=generator)
    return list(fit.examples(keys, values + 1.0, queries, seen, mass))


def test_an_example_is_exact_attention_to_what_stays(monkeypatch):
    every = shown(160, monkeypatch)
    assert len(every) == len(fit.SHARES)
    for share, example in zip(fit.SHARES, every, strict=True):
        kept = (~example.gone).sum(dim=1)
        assert set(kept.tolist()) <= {round(share * 120), round(share * 120) + 1}
    last, head, own = every[-1], 1, ~every[-1].gone[1]
    logits = last.queries[0, 2:4] @ last.keys[head, own].T / 4
    assert bool((logits.logsumexp(dim=1) < last.lse[0, 2:4]).all()), "and the end beside it"


def test_a_fit_makes_good_most_of_what_is_lost(monkeypatch):
    every, output = shown(160, monkeypatch), torch.eye(64).view(4, 16, 64)
    found = fit.fitted(every, output, steps=80)
    assert fit.error(found, every, output) < 0.5
    lost = fit.error(None, every, output)
    exact = sum(float((e.kept - e.whole).flatten(1).square().mean()) for e in every) / len(every)
    assert lost == pytest.approx(exact, rel=1e-4)


def test_calibrate_fits_goes_on_and_is_found(folder, tmp_path, monkeypatch, capsys):
    """From the command to a prefill; a second run goes on from what the first one has read."""
    monkeypatch.setattr(fit, "LATER", 60)
    monkeypatch.setattr(fit, "STEPS", 3)
    monkeypatch.setattr(features, "folder", lambda: tmp_path)
    session = new_session(folder)
    texts = []
    for number, word in enumerate(("sea", "keeper")):
        texts.append(tmp_path / f"{number}.txt")
        texts[-1].write_text(f"The {word} counted ships. At night he slept. " * 30)
    settings = Settings(purpose=MAPS, out=str(tmp_path), threads=1)
    assert calibrate.run(find_model(str(folder), {}), list(map(str, texts)), settings) == 0
    assert "left" in capsys.readouterr().err
    found = features.find(session.engine.model)
    assert found is not None and len(found) == len(session.engine.config.full_layers)
    assert not list(tmp_path.glob("*.parts")) and load_file(next(tmp_path.glob("*.less")))
