"""The gates that ship: found by every form of their model, and better than what needs none."""

import pytest
import torch

from kvchat.engine import gates
from kvchat.engine.events import drain
from kvchat.engine.loading import load_engine
from kvchat.engine.methods.build import parse_method
from kvchat.engine.model.read import load_config
from kvchat.engine.prefill.prefill import Compression
from tests.engine.tiny import random_gate, read

pytestmark = pytest.mark.model


def test_a_gate_ships_for_the_folder_and_the_file(real):
    for path in (real.folder, real.file):
        assert gates.exists(path, load_config(path))


@torch.inference_mode()
def test_it_keeps_what_matters(real):
    """A quarter of the entries: the document's next tokens lose less than by a gate that knows
    nothing, by the last queries, or by the keys alone."""
    engine = drain(load_engine(real.folder, load_config(real.folder), "bf16", "cpu"))
    ids, told = real.ids[:320], real.ids[320:]
    full, _ = read(engine, ids, parse_method("full"))
    want = engine.score(full, told).float().log_softmax(-1)

    def loss(spec: str) -> float:
        (cache,) = drain(engine.prefill(ids, [Compression(parse_method(spec))])).caches
        got = engine.score(cache, told).float().log_softmax(-1)
        return float((want.exp() * (want - got)).sum(-1).mean())

    lost = {spec: loss(f"{spec}:budget=25%") for spec in ("kvzap", "knorm", "snapkv")}
    vars(engine)["gate"] = random_gate(engine)
    blind = loss("kvzap:budget=25%")
    print(lost, blind)
    assert lost["kvzap"] < 0.75 * blind
    assert lost["kvzap"] < 0.75 * min(lost["knorm"], lost["snapkv"])
