"""The decode step of a CPU, compiled by numba, against the same step by torch's operators:
families, weights, dtypes, methods, threads, and long pasts."""

import gc
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from kvchat.engine import ops
from kvchat.engine.compaction import folding, watch
from kvchat.engine.decode.compiled import CompiledStep
from kvchat.engine.decode.loop import COMPILED, EAGER
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.engine import Engine
from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method
from kvchat.kernels.cpu.layer import gate
from tests.engine.test_families import CASES
from tests.engine.test_low_bit import SHAPE as WIDE
from tests.engine.test_model_parity import CASES as LLAMAS
from tests.engine.tiny import load_engine, random_ids, read, save_model
from tests.support.closeness import assert_close

IDS, AFTER = random_ids(90), random_ids(6, seed=3)
METHODS = (
    "full", "adakv:budget=40%,window=8", "kvzip:budget=40%", "kvmerger:budget=50%",
    "adakv:budget=40%,window=8,bits=8", "kvzip:budget=60%,bits=4", "streamingllm:budget=40%",
    "less:budget=60%",
)  # fmt: skip


def assert_same_steps(engine, ids=IDS, method="full", tolerance=1e-5):
    """The same logits token by token, and the same entries afterwards."""
    step, method = CompiledStep(engine.model), parse_method(method)
    ours, theirs = (read(engine, ids, method)[0] for _ in range(2))
    for token in AFTER:
        got = step(ours, token).clone()
        want = drain(engine.extend(theirs, [token])).float()
        assert_close("logits", got, want, tolerance)
    assert ours.position == theirs.position == len(ids) + len(AFTER)
    for mine, other in zip(ours.walked, theirs.walked, strict=True):
        assert mine.tail.start == other.tail.start
        assert_close("keys", mine.tail.keys.float(), other.tail.keys.float(), tolerance)
        assert_close("values", mine.tail.values.float(), other.tail.values.float(), tolerance)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_families(tmp_path, case):
    assert_same_steps(load_engine(save_model(tmp_path, **({"num_hidden_layers": 3} | case))))


@pytest.mark.parametrize("case", LLAMAS.values(), ids=LLAMAS.keys())
def test_shapes_of_llama(tmp_path, case):
    """Groups of 1 to 8, heads of 16 to 128, biases, tied tables."""
    assert_same_steps(load_engine(save_model(tmp_path, **case)))


@pytest.mark.parametrize("method", METHODS)
def test_methods(checkpoint, method):
    assert_same_steps(load_engine(checkpoint()), random_ids(150), method)


RETRIEVED = (
    "pqcache:budget=20%,block=4,dense_below=100",
    "pqcache:budget=20%,block=4,dense_below=100,m=4,code_bits=6,aggregate=max",
    "pqcache:budget=30%,block=2,dense_below=100,m=1,code_bits=4,aggregate=logit_sum",
    "squeezed:budget=20%,block=4,dense_below=100,sinks=4",
    "squeezed:budget=20%,block=4,dense_below=100,levels=2,clusters=0.2,coarse=0.05,per=head",
    "kcache:budget=20%,block=4,dense_below=100",
)
FEW = (
    "adakv:budget=40%,window=8,bits=8", "kvzip:budget=60%,bits=4", "full:bits=2,residual=40",
    "qaq:budget=30%",
)  # fmt: skip


@pytest.fixture
def compiled_alone(monkeypatch):
    """No segment is attended to by torch in one-token steps of ours; `with` it where it may be."""
    monkeypatch.setattr("kvchat.engine.decode.past.include", None)


@pytest.mark.parametrize("method", RETRIEVED)
def test_entries_that_are_found_again_for_every_token(checkpoint, compiled_alone, method):
    """Also those that left the window meanwhile: a few tokens at a time."""
    engine = load_engine(checkpoint())
    assert_same_steps(engine, random_ids(700), method)
    cache, _ = read(engine, random_ids(700), parse_method(method))
    step, segment = CompiledStep(engine.model), cache.layers[0].segments[0]
    for token in random_ids(12, seed=4):
        step(cache, token)
    assert segment.late.length >= 8 and segment.steps == 12
    assert (segment.captured is None) == ("aggregate" in method)
    if segment.captured is not None:
        assert 0 < segment.captured < 1


def test_entries_that_go_back_to_the_window(checkpoint):
    """Undo: the steps after it are those of a cache that was never there."""
    engine, method = load_engine(checkpoint()), parse_method(RETRIEVED[0])
    (cache, _), (other, _) = (read(engine, random_ids(700), method) for _ in range(2))
    step = CompiledStep(engine.model)
    for token in random_ids(12, seed=4):
        step(cache, token)
    cache.truncate(700)
    for token in AFTER:
        got = step(cache, token).clone()
        assert_close("logits", got, CompiledStep(engine.model)(other, token), 1e-6)


@pytest.mark.parametrize("method", FEW)
@pytest.mark.parametrize("shape", ({"head_dim": 32}, {"head_dim": 64, "num_key_value_heads": 1}))
def test_entries_in_few_bits(checkpoint, compiled_alone, method, shape):
    assert_same_steps(load_engine(checkpoint(**shape)), random_ids(300), method)


def test_a_segment_that_is_read_in_full_goes_through_torch(checkpoint):
    """Its codes would choose nothing."""
    engine, caches = load_engine(checkpoint()), []
    for _ in range(2):
        cache, _ = read(engine, random_ids(300), parse_method(RETRIEVED[0]))
        for layer in cache.layers:
            segment = layer.segments[0]
            segment.reads = replace(segment.reads, count=segment.codes.shape[1])
        caches.append(cache)
    got = CompiledStep(engine.model)(caches[0], 5).clone()
    assert_close("logits", got, drain(engine.extend(caches[1], [5])), 1e-5)


@pytest.mark.parametrize("dtype, tolerance", [("bf16", 0.03), ("f16", 4e-3)])
def test_16_bits(checkpoint, dtype, tolerance):
    """Ours sums in fp32 throughout: what differs is torch's rounding."""
    assert_same_steps(load_engine(checkpoint(), dtype), tolerance=tolerance)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_weights_in_few_bits(checkpoint, weights, monkeypatch):
    """torch's operators round inputs to bf16; 4 bits go through them here."""
    monkeypatch.setattr("kvchat.engine.decode.maps.four_bits.able", lambda: False)
    engine = load_engine(checkpoint(**WIDE, attention_bias=True), weights=weights)
    assert_same_steps(engine, tolerance=0.02)


def test_4_bits_by_integers(checkpoint):
    """The input of a product is rounded to 8 bits: 0.5 % of it, which a random model multiplies."""
    model = load_engine(checkpoint(**WIDE, attention_bias=True), weights="int4").model
    step = CompiledStep(model)
    for own, block in zip(step.layers, model.blocks, strict=True):
        mlp, attention = block.mlp, block.self_attn
        for product, maps in (
            (own.qkv, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (own.o, (attention.o_proj,)),
            (own.both, (mlp.gate_proj, mlp.up_proj)),
            (own.down, (mlp.down_proj,)),
        ):
            dense = torch.cat([each.dense(torch.float32) for each in maps])
            x, y = torch.randn(1, dense.shape[1]), torch.empty(1, len(dense))
            product(x.numpy(), y.numpy())
            assert_close("product", y[0], dense @ x[0], 0.012)
    assert step(engine_cache(model), 3).isfinite().all()


def engine_cache(model):
    return Engine(model).empty_cache()


@pytest.mark.parametrize("gelu", [False, True])
def test_gates_of_any_size(gelu):
    """Large models have some of many hundreds."""
    gates = torch.tensor([-1e10, -500.0, -100.0, -89.0, -20.0, -1.0, 0.0, 1.0, 20.0, 500.0, 1e10])
    ups = torch.linspace(-2, 3, len(gates))
    both, got, none = torch.cat((gates, ups)), torch.empty_like(gates), np.empty(0, np.float32)
    gate(both.numpy(), none, none, gelu, got.numpy())
    want = ops.geglu(gates, ups) if gelu else ops.swiglu(gates, ups)
    size = gates.abs().clamp(min=1)
    torch.testing.assert_close(got / size, want / size, rtol=1e-6, atol=1e-6)


def test_an_empty_past_and_a_growing_tail(checkpoint):
    engine, ids = load_engine(checkpoint()), random_ids(600)
    step, ours, theirs = CompiledStep(engine.model), engine.empty_cache(), engine.empty_cache()
    for token in ids:
        got = step(ours, token)
    want = drain(engine.extend(theirs, ids))
    assert_close("logits", got, want, 1e-5)


def test_several_threads_make_the_same(checkpoint, monkeypatch):
    """Heads are cut into pieces and joined; matrices are shared out."""
    monkeypatch.setattr("kvchat.engine.decode.maps.WORTH", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        engine = load_engine(checkpoint(num_key_value_heads=1, attention_bias=True))
        assert CompiledStep(engine.model).room.splits == 2
        for method in ("adakv:budget=40%,window=8", *FEW, RETRIEVED[0]):
            assert_same_steps(engine, random_ids(300), method)
        engine = load_engine(checkpoint())
        for method in RETRIEVED:
            assert_same_steps(engine, random_ids(300), method)
    finally:
        torch.set_num_threads(before)


def test_torch_keeps_its_threads(engine, monkeypatch):
    """The pool of numba's threads gives its own number to torch when it begins."""
    monkeypatch.setattr("numba.set_num_threads", lambda count: torch.set_num_threads(count + 1))
    before = torch.get_num_threads()
    CompiledStep(engine.model)
    assert torch.get_num_threads() == before


def test_queries_that_are_observed(checkpoint):
    """What compressing turns will need is gathered by either step."""
    engine = load_engine(checkpoint())
    method = parse_method("h2o:budget=40%")
    folds = folding(method, 64)
    caches = [read(engine, IDS, method)[0] for _ in range(2)]
    for cache in caches:
        watch(cache, folds, len(IDS))
    step = CompiledStep(engine.model)
    for token in AFTER:
        step(caches[0], token)
        drain(engine.extend(caches[1], [token]))
    for ours, theirs in zip(caches[0].layers, caches[1].layers, strict=True):
        assert_close("mass", ours.observer.mass, theirs.observer.mass, 1e-5)


def test_the_writer_takes_it_where_it_may(checkpoint):
    folder = checkpoint()
    model = load_engine(folder).model
    ids, answers = random_ids(40), []
    for kernels, way in (("auto", COMPILED), ("numba", COMPILED), ("torch", EAGER)):
        engine = Engine(model, kernels=kernels)
        assert engine.writer.way.startswith(way)
        cache, logits = read(engine, ids)
        tokens = engine.decode(cache, logits, Sampling())
        answers.append([next(tokens) for _ in range(12)])
        assert engine.writer.way.startswith(way)
    assert answers[0] == answers[1] == answers[2] and len(set(answers[0])) > 3


def test_a_cache_that_is_dropped_frees_its_memory(checkpoint):
    """Its arrays look into the cache, and the step stays for the next one."""
    engine = load_engine(checkpoint())
    cache, logits = read(engine, IDS, parse_method("adakv:budget=40%,window=8"))
    tokens = engine.decode(cache, logits, Sampling())
    assert len([next(tokens) for _ in range(4)]) == 4 and engine.writer.way == COMPILED
    parts = [part for layer in cache.layers for part in (layer.segments[0], layer.tail)]
    held = [weakref.ref(part.k) for part in parts]
    del cache, tokens, parts
    gc.collect()
    assert len(held) == 4 and not any(each() is not None for each in held)


@pytest.mark.parametrize(
    "method, most",
    [("adakv:budget=40%,window=8", 11), (FEW[0], 12), ("pqcache:budget=20%,dense_below=100", 12)],
    ids=["plain", "few bits", "retrieved"],
)
def test_calls_per_layer_stay_few(checkpoint, monkeypatch, method, most):
    """A guard that counts calls, not time: what a token costs beside its arithmetic."""
    import kvchat.engine.decode.compiled as module
    import kvchat.engine.decode.maps as maps
    import kvchat.engine.decode.past as past

    engine, calls = load_engine(checkpoint(num_hidden_layers=4)), []

    def counted(real):
        return lambda *a: calls.append(1) or real(*a)

    for where, names in (
        (module, ("norm", "place", "add", "gate")),
        (past, ("attend", "attend_packed", "choose", "include")),
    ):
        for name in names:
            monkeypatch.setattr(where, name, counted(getattr(where, name)))
    monkeypatch.setattr(maps.Shared, "__call__", counted(maps.Shared.__call__))
    cache, _ = read(engine, random_ids(300), parse_method(method))
    step = module.CompiledStep(engine.model)
    step(cache, 1)
    calls.clear()
    step(cache, 2)
    assert 4 * 9 < len(calls) <= 4 * most + 2
    operators, python = [], []

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            operators.append(function)
            return function(*args, **(kwargs or {}))

    with Counting():
        step(cache, 3)
    assert len(operators) <= 40, [str(each) for each in operators]
    sys.setprofile(lambda frame, event, _: python.append(1) if event == "call" else None)
    try:
        step(cache, 4)
    finally:
        sys.setprofile(None)
    assert len(python) <= 4 * 55 + 100, len(python)
