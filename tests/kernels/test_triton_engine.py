"""A whole model on the kernels: reading, compressing and writing as on a card, interpreted."""

import pytest
import torch
from closeness import assert_close
from engine import tiny

from kvchat.engine import ops
from kvchat.engine.attention.choice import Choice
from kvchat.engine.attention.triton_backend import TritonBackend
from kvchat.engine.events import drain
from kvchat.engine.methods.spec import parse_method
from kvchat.engine.prefill import Compression

BLOCK = {"norm_rope:rms_norm", "norm_rope:add_rms_norm", "norm_rope:rope", "norm_rope:swiglu"}
METHODS = {
    "adakv:budget=40%,window=8": "mass:window_mass",
    "kvmerger:budget=50%": "merge:merge_rows",
    "h2o:budget=80%,bits=4": "mass:column_mass",  # 32 rows of each head are packed
}


@pytest.mark.parametrize("method", METHODS)
def test_reading_and_writing_are_those_of_torch(checkpoint, method, monkeypatch):
    ids, got, names = tiny.random_ids(40), [], set()
    for kernels in (False, True):
        engine = tiny.load_engine(checkpoint(), chunk=30)
        if kernels:
            engine.backend = Choice([TritonBackend()])
            monkeypatch.setattr(ops, "kernel", lambda path, _: names.add(path) or ops._loaded(path))
        reading = drain(engine.prefill(ids, [Compression(parse_method(method))]))
        asked = drain(engine.extend(reading.caches[0], ids[:3]))
        written = drain(engine.extend(reading.caches[0], ids[3:4]))
        got.append(torch.stack((reading.logits, asked, written)))
    assert_close("logits", got[1], got[0], 1e-4)
    assert {*BLOCK, METHODS[method]} <= names
