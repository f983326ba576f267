"""A whole model on the kernels: reading, compressing and writing as on a card, interpreted."""

from itertools import islice

import pytest
import torch

from kvchat.engine import ops
from kvchat.engine.attention.choice import Choice
from kvchat.engine.attention.triton_backend import TritonBackend
from kvchat.engine.decode.loop import Writer
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method
from kvchat.engine.prefill.prefill import Compression
from kvchat.kernels import attention
from tests.engine import tiny
from tests.support.closeness import assert_close

BLOCK = {"norm_rope:rms_norm", "norm_rope:add_rms_norm", "norm_rope:rope", "norm_rope:swiglu"}
METHODS = {
    "adakv:budget=40%,window=8": "mass:window_mass",
    "kvmerger:budget=50%": "merge:merge_entries",
    "h2o:budget=80%,bits=4": "mass:column_mass",  # 32 entries of each head are packed
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


def test_every_step_that_is_recorded_launches_the_same(checkpoint, monkeypatch):
    """Grids and numbers of the host do not change from token to token, nor do stores move."""
    tokens, launches = [], []
    for kernels in (False, True):
        engine = tiny.load_engine(checkpoint())
        if kernels:
            engine.backend = Choice([TritonBackend()])
            monkeypatch.setattr(ops, "kernel", lambda path, _: ops._loaded(path))
            for name in ("_attend", "_join"):
                noted = Noted(getattr(attention, name), launches)
                monkeypatch.setattr(attention, name, noted)
            engine.writer = Writer(engine.model, lambda work: work)
        method = parse_method("h2o:budget=80%,bits=8")
        reading = drain(engine.prefill(tiny.random_ids(42), [Compression(method)]))
        cache = reading.caches[0]
        logits = drain(engine.extend(cache, [1, 2]))
        launches.clear()
        tokens.append(list(islice(engine.decode(cache, logits, Sampling()), 4)))
    assert tokens[0] == tokens[1]
    each = len(cache.layers) * 2
    assert len(launches) == 4 * each, "three tokens, and the one that is on its way"
    assert launches[:each] * 4 == launches


class Noted:
    """A kernel whose launches are written down: grids, numbers, and where the stored entries
    are."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        def launch(*args, **options):
            stores = next(arg for arg in args if isinstance(arg, tuple))
            places = [[getattr(x, "data_ptr", lambda x=x: x)() for x in part] for part in stores]
            numbers = [arg for arg in args if isinstance(arg, int | float)]
            self.launches.append((grid, numbers, places, options))
            return self.kernel[grid](*args, **options)

        return launch
