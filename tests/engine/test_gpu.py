"""The same numbers on a CUDA device. Deselected by `make test`; `make test-gpu` runs it."""

import pytest
import torch
from closeness import assert_close

from engine import tiny
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
