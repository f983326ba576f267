"""The same numbers on a CUDA device; `make test-gpu` runs it."""

from itertools import islice

import pytest
import torch

from kvchat.engine.decode.loop import GRAPH, Writer
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import drain
from kvchat.engine.loading import load_engine
from kvchat.engine.methods import METHODS
from kvchat.engine.methods.build import parse_method
from kvchat.engine.model.read import load_config
from kvchat.engine.prefill.prefill import Compression
from kvchat.engine.weights.linear import Int4Linear
from tests.engine import tiny
from tests.engine.recorder import CACHES, WARM, begun, written
from tests.support.closeness import assert_close

pytestmark = pytest.mark.gpu
SHAPE = {"hidden_size": 64, "intermediate_size": 192, "head_dim": 32}


def loaded(folder, weights="auto", dtype="f32", attention="auto", where="cuda"):
    config = load_config(folder)
    return drain(load_engine(folder, config, dtype, where, weights, attention))


@pytest.mark.parametrize("name", METHODS)
def test_reading_and_writing_equal_the_cpu(checkpoint, name):
    folder = checkpoint()
    cpu = tiny.load_engine(folder)
    cuda = loaded(folder)
    ids = tiny.random_ids(300)
    got = {}
    for where, engine in (("cpu", cpu), ("cuda", cuda)):
        reading = drain(engine.prefill(ids, [Compression(parse_method(name))]))
        written = drain(engine.extend(reading.caches[0], ids[:5]))
        got[where] = reading.logits.cpu(), written.cpu(), reading.caches[0].memory()
    assert_close("reading", got["cuda"][0], got["cpu"][0], 1e-4)
    assert_close("writing", got["cuda"][1], got["cpu"][1], 1e-4)
    assert got["cuda"][2] == got["cpu"][2]


@pytest.mark.parametrize("tokens", [1, 64, 65])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_four_bits_on_the_card_are_the_numbers_they_stand_for(tokens, group):
    weight = torch.randn(192, 3 * group, device="cuda")
    linear = Int4Linear.of(weight)
    numbers = linear.dense(torch.float32)
    assert linear.group == group
    assert_close("numbers", numbers, weight, 0.15)
    x = torch.randn(tokens, 3 * group, device="cuda")
    assert_close("product", linear(x), x @ numbers.T, 0.006)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_models_in_few_bits_equal_the_cpu(checkpoint, weights):
    folder = checkpoint(**SHAPE)
    engines = [loaded(folder, weights, where=where) for where in ("cpu", "cuda")]
    ids = tiny.random_ids(100)
    want, got = (engine.score(engine.empty_cache(), ids).cpu() for engine in engines)
    assert_close("scores", got, want, 0.01)


@pytest.mark.parametrize("attention", ["auto", "torch"])
@pytest.mark.parametrize("sampling", [Sampling(), WARM], ids=["greedy", "sampled"])
@pytest.mark.parametrize("method", CACHES)
def test_a_graph_writes_what_single_steps_write(checkpoint, method, sampling, attention):
    """Past the end of the tail, which is recorded again."""
    engine = loaded(checkpoint(), attention=attention)
    tokens, counted, after = written(engine, method, sampling, 280)
    assert engine.writer.way == GRAPH
    engine.writer = Writer(engine.model, refused="a test")
    plain_tokens, plain_counted, plain_after = written(engine, method, sampling, 280)
    assert tokens == plain_tokens and counted == plain_counted
    assert_close("logits", after, plain_after, 1e-5)


@pytest.mark.parametrize("weights", ["auto", "int8", "int4"])
def test_a_graph_neither_waits_nor_allocates(checkpoint, weights):
    folder = checkpoint(**SHAPE)
    engine = loaded(folder, weights, "bf16")
    cache, logits = begun(engine, "adakv:budget=25%")
    tokens = engine.decode(cache, logits, WARM)
    list(islice(tokens, 3))
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(islice(tokens, 50))) == 50
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    assert engine.writer.way == GRAPH
