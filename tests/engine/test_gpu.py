"""The same numbers on a CUDA device. Deselected by `make test`; `make test-gpu` runs it."""

import pytest
import torch
from closeness import assert_close

from engine import tiny
from kvchat.engine import lowbit
from kvchat.engine.engine import Engine
from kvchat.engine.events import drain
from kvchat.engine.methods import METHODS
from kvchat.engine.methods.spec import parse_method
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.prefill import Compression


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
def test_reading_and_writing_equal_the_cpu(checkpoint, name):
    folder = checkpoint()
    cpu = tiny.load_engine(folder)
    cuda = drain(Engine.load(folder, ModelConfig.load(folder), "f32", "cuda"))
    ids = torch.randint(cpu.config.vocab_size, (300,)).tolist()
    got = {}
    for where, engine in (("cpu", cpu), ("cuda", cuda)):
        reading = drain(engine.prefill(ids, [Compression(parse_method(name))]))
        written = drain(engine.extend(reading.caches[0], ids[:5]))
        got[where] = reading.logits.cpu(), written.cpu(), reading.caches[0].memory()
    assert_close("reading", got["cuda"][0], got["cpu"][0], 1e-4)
    assert_close("writing", got["cuda"][1], got["cpu"][1], 1e-4)
    assert got["cuda"][2] == got["cpu"][2]


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 64, 65])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_four_bits_on_the_card_are_the_numbers_they_stand_for(tokens, group):
    weight = torch.randn(192, 3 * group, device="cuda")
    packed, scales = lowbit.quantize_groups(weight, group)
    numbers = lowbit.groups_dense(packed, scales, group, torch.float32)
    assert lowbit.unpacking("cuda") is not None, "else documents are read slowly"
    assert_close("numbers", numbers, weight, 0.15)
    x = torch.randn(tokens, 3 * group, device="cuda")
    assert_close("product", lowbit.groups_product(x, packed, scales, group), x @ numbers.T, 0.006)


@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_models_in_few_bits_equal_the_cpu(checkpoint, weights):
    folder = checkpoint(hidden_size=64, intermediate_size=192, head_dim=32)
    config, ids = ModelConfig.load(folder), torch.randint(96, (100,)).tolist()
    got = []
    for where in ("cpu", "cuda"):
        engine = drain(Engine.load(folder, config, "f32", where, weights))
        got.append(engine.score(engine.empty_cache(), ids).cpu())
    assert_close("scores", got[1], got[0], 0.01)
