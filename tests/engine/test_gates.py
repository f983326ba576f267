"""Gates: fitted, kept by the model's digest, and obeyed by a prefill."""

from dataclasses import replace

import pytest
import torch

from kvchat.engine import gates
from kvchat.engine.budget import Budget
from kvchat.engine.events import drain
from kvchat.engine.gates import Gate
from kvchat.engine.gates.check import TOKENS, Check, lost, usual
from kvchat.engine.gates.fit import END, Fit, Inputs, Sums
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.kvzip import KVzap, KVzip, together
from kvchat.engine.methods.needs import GATE
from kvchat.engine.methods.simple import Full
from kvchat.engine.model.read import load_config
from kvchat.engine.prefill.archive_writer import GATED, InMemory
from kvchat.engine.prefill.prefill import Compression
from kvchat.errors import KvchatError
from tests.engine.scenes import Recorder, assert_same_cache, kept_tokens, random_scene
from tests.engine.scripted import BOOK, new_session
from tests.engine.tiny import load_engine, random_gate, random_ids

IDS = random_ids(90, seed=4)


def test_ridge_finds_the_map_that_made_the_targets():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 9, generator=generator)
    learnt, judged = Sums.empty(9, 3), Sums.empty(9, 3)
    for sums, count in ((learnt, 4000), (learnt, 1000), (judged, 500)):
        x = torch.cat([torch.randn(count, 8, generator=generator), torch.ones(count, 1)], dim=1)
        sums.add(x, x @ weight.T + 0.1 * torch.randn(count, 3, generator=generator))
    found = learnt.solve()
    assert found.shape == (3, 9) and learnt.count == 5000
    assert float((found - weight).abs().max()) < 0.12, "shrunk a little"
    assert 0.98 < judged.explained(found) < 1
    assert judged.explained(torch.zeros(3, 9)) < 0 < judged.explained(0.5 * weight.double())


def test_a_gate_is_found_by_the_norms_of_its_model(checkpoint, tmp_path, monkeypatch):
    """Of the checkpoint alone, in another dtype, and in few bits; and not by another model."""
    monkeypatch.setattr(gates, "folder", lambda: tmp_path / "gates")
    folder = checkpoint()
    engine = load_engine(folder)
    gate = random_gate(engine)
    assert not gates.exists(folder, load_config(folder)) and gates.find(engine.model) is None
    path = gates.save(replace(gate, about={"model": "tiny"}), engine.model)
    assert gates.exists(folder, load_config(folder))
    for other in (engine, load_engine(folder, "bf16"), load_engine(folder, "bf16", weights="int8")):
        found = gates.find(other.model)
        assert found is not None and found.about == {"model": "tiny"}
        assert torch.allclose(found.weight, gate.weight, atol=1e-3)
        assert torch.allclose(found.end, gate.end, atol=1e-3)
    assert gates.find(load_engine(checkpoint(seed=3)).model) is None
    path.write_bytes(b"x" * 40)
    assert gates.find(engine.model) is None and not gates.exists(folder, load_config(folder))


@pytest.mark.parametrize("chunk", [7, 1000])
def test_kvzap_keeps_what_the_gate_foretells(checkpoint, chunk):
    """A head's best entries by `exp(W x + e)` of the block's normed input, `e` of the last 20 by
    their place, whatever the chunks."""
    engine = load_engine(checkpoint(), chunk=chunk)
    seen: list[torch.Tensor] = []
    for block in engine.model.blocks:
        block.input_layernorm.register_forward_hook(lambda _, __, x: seen.append(x.clone()))
    drain(engine.prefill(IDS, [Compression(Full())]))
    parts = -(-len(IDS) // chunk)
    inputs = [torch.cat(seen[n * parts : (n + 1) * parts]) for n in range(2)]
    weight = engine.gate.weight
    logs = [(x @ w[:, :-1].T + w[:, -1]).T for x, w in zip(inputs, weight, strict=True)]
    worth = torch.stack(logs)
    worth[:, :, -20:] += engine.gate.end
    worth = worth.exp()
    worth[:, :, -1] = float("inf")
    method = KVzap(Budget(fraction=0.25), sinks=0, near=0.0, means=0)
    cache = drain(engine.prefill(IDS, [Compression(method)])).caches[0]
    order = worth.sort(dim=2, descending=True, stable=True).indices
    kept = [kept_tokens(segment) for segment in cache.segments()]
    assert sum(len(head) for layer in kept for head in layer) == 2 * round(0.25 * 2 * len(IDS))
    for number, layer in enumerate(kept):
        for head, chosen in enumerate(layer):
            assert chosen == sorted(order[number, head, : len(chosen)].tolist())


def test_without_a_gate_kvzap_is_refused(checkpoint):
    engine = load_engine(checkpoint())
    vars(engine)["gate"] = None
    with pytest.raises(KvchatError) as refused:
        drain(engine.prefill(IDS, [Compression(KVzap())]))
    assert refused.value.code == "usage" and len(refused.value.tries) == 2


def test_a_kept_copy_has_what_the_gate_told(checkpoint):
    """So kvzap chooses from it as from a prefill."""
    engine, method = load_engine(checkpoint(), chunk=32), KVzap(Budget(fraction=0.3))
    work = InMemory(GATED)
    drain(engine.prefill(IDS, [Compression(Full())], archiving=work))
    chosen = engine.chosen(work.archives(), method)
    assert chosen is not None
    assert_same_cache(chosen, drain(engine.prefill(IDS, [Compression(method)])).caches[0])


def test_a_question_joins_the_scores_of_the_document():
    """Within a head: the score, and the question's attention times the value's norm at its mean."""
    scene = random_scene(2, 2, 30, 5)
    method = KVzip(Budget(fraction=0.5), sinks=0, near=0.0)
    table = together([scene.told[each] for each in method.scores])
    q = scene.queries.view(5, 2, 2, 8)
    logits = torch.einsum("whgd,hnd->whgn", q, scene.keys) * scene.scale
    mass = (logits - scene.lse.view(5, 2, 2, 1)).exp()
    mass *= torch.arange(30) < scene.seen[:, None, None, None]
    wanted = mass.mean(dim=(0, 2)) * scene.values.norm(dim=-1)
    want = table + wanted * (table.mean(1) / wanted.mean(1))[:, None]
    segment = method.compress(scene)
    worth, alone = method.worth(scene, segment)
    _, within = method.worth(replace(scene, asked=True), segment)
    for head in range(2):
        own = slice(head * 30, head * 30 + 29)  # the newest entry is above all
        assert torch.allclose(worth[own], table[head, :29])
        assert torch.equal(worth[own], alone[own]), "no question, no difference"
        assert torch.allclose(within[own], want[head, :29], rtol=1e-4)


def test_a_fit_goes_on_where_it_was_stopped(folder, tmp_path):
    """Two documents at once, or one in each of two runs: the same gate; a third one judges it."""
    session = new_session(folder)
    texts = [BOOK, f"Number 7. {BOOK} Who is it?", f"{BOOK} It is Ada."]
    documents = [session.dialogue.document(text) for text in texts]

    def fit() -> Fit:
        return Fit(session.engine, session.dialogue, KVzip())

    whole = fit()
    for number, ids in enumerate(documents):
        drain(whole.read(ids, held_out=number == 2))
    part, path = fit(), tmp_path / "x.part"
    assert part.resume(path) == set()
    drain(part.read(documents[0]))
    part.note("first", path)
    rest = fit()
    assert rest.resume(path) == {"first"}
    drain(rest.read(documents[1]))
    drain(rest.read(documents[2], held_out=True))
    assert torch.equal(rest.gate().weight, whole.gate().weight)
    gate = whole.gate(model="x")
    assert len(gate.about["r2"].split()) == len(session.engine.config.full_layers)
    first = sum(len(ids) for ids in documents[:2])
    assert 0 < gate.about["entries"] < first, "what stands before the text is not learnt"


def test_what_is_learnt_is_the_log_of_kvzips_score(folder):
    """With as many inputs as entries the map gives back the scores that kvzip goes by."""
    session = new_session(folder)
    engine, ids = session.engine, session.dialogue.document(BOOK)
    method = KVzip()
    fit = Fit(engine, session.dialogue, method)
    drain(fit.read(ids))
    recorder = Recorder(method.needs)
    drain(session.read(ids, [Compression(recorder)]))
    inputs = Inputs()
    watched = Compression(Recorder(KVzap().needs))
    drain(engine.prefill(ids, [watched], gate=inputs))
    for layer, (given, sums) in enumerate(zip(recorder.shown, fit.sums, strict=True)):
        table = together([given.told[each] for each in method.scores])
        told = table.isfinite().all(0)
        told[-1] = False
        y = table[:, told].clamp_min(1e-8).log().double()
        assert sums.count == int(told.sum())
        assert torch.allclose(sums.total, y.sum(1), rtol=1e-4)
        x = inputs[layer][told].double()
        assert torch.allclose(sums.product[:-1], x.T @ y.T, rtol=1e-3, atol=1e-2)


def test_a_gate_never_overflows():
    gate = Gate(torch.full((1, 2, 5), 1e4), torch.zeros(1, 2, 4))
    assert bool(gate.scores(0, torch.ones(3, 4), 0).isfinite().all())


def test_the_end_of_documents_is_worth_what_the_map_misses():
    """Targets are a map's, and 2 more for the last 30 entries: found again, and only there."""
    generator, sums = torch.Generator().manual_seed(2), Sums.empty(9, 2)
    weight = torch.randn(2, 9, generator=generator)
    for _ in range(40):
        x = torch.cat([torch.randn(600, 8, generator=generator), torch.ones(600, 1)], dim=1)
        y = x @ weight.T
        y[-30:] += 2.0
        sums.add(x, y)
    sums.add(torch.ones(5, 9), torch.ones(5, 2))  # too short to have an end
    assert sums.documents == 40
    end = sums.end(sums.solve())
    assert end.shape == (2, END)
    assert float((end[:, -25:] - 2).abs().max()) < 0.2
    assert float(end[:, :80].abs().max()) < 0.2
    assert not bool(Sums.empty(9, 2).end(weight).any())


def test_gates_that_ship_are_in_order():
    """Each says whose it is and how good it was on text that was held out: better than nothing."""
    shipped = [gate for path, gate in gates.every() if path.parent == gates.SHIPPED]
    assert {gate.about["model"] for gate in shipped} == {"qwen2.5-coder-0.5b", "smollm2-135m"}
    for gate in shipped:
        layers, heads, inputs = gate.weight.shape
        explained = [float(each) for each in gate.about["r2"].split()]
        assert len(explained) == layers and heads in (2, 3) and inputs in (897, 577)
        assert min(explained) > 0.3 and sum(explained) / layers > 0.55


@pytest.mark.parametrize("power, expected", [(2.0, 1.0), (-1.0, -1.0)])
def test_a_check_tells_how_well_the_gate_foretells(power, expected):
    """Of a replayed part alone: elsewhere no score is known. A head's scale does not matter."""
    generator, check = torch.Generator().manual_seed(0), Check()
    for _ in range(3):
        shown = torch.full((2, 40), float("inf"))
        shown[:, 10:30] = torch.rand(2, 20, generator=generator) + 0.01
        gate = torch.rand(2, 40, generator=generator) * 100
        gate[:, 10:30] = shown[:, 10:30] ** power * torch.tensor([[1.0], [50.0]])
        told = dict.fromkeys(check.scores, shown) | {GATE: gate}
        given = random_scene(heads=2, group=1, tokens=40, window=4)
        assert len(check.compress(replace(given, told=told)).k) == 0
    assert check.correlation == pytest.approx(expected, abs=1e-5)
    gate = Gate(torch.zeros(1), torch.zeros(1), {"r2": "0.5 0.78"})
    assert usual(gate) == pytest.approx(0.8) and usual(replace(gate, about={})) is None
    assert lost(check.correlation, gate) == (expected < 0)
    assert not lost(0.65, gate) and lost(0.63, gate) and not lost(0.0, replace(gate, about={}))


def test_a_session_checks_its_gate_and_keeps_what_it_would_have_kept(folder):
    session = new_session(folder, book=9 * BOOK, method=parse_method("kvzap"))
    ids = session.document
    assert len(ids) > 2 * TOKENS and -1 <= session.gate_correlation <= 1
    alone = drain(session.engine.prefill(ids, [Compression(parse_method("kvzap"))])).caches[0]
    assert_same_cache(session.cache, alone)
    drain(session.recompress(parse_method("adakv:budget=40%,window=8")))
    assert session.gate_correlation is None
