"""`benchmarks/card.py` was never run on a card: at least its ways write what they are said to."""

import sys
from pathlib import Path

import pytest
import torch

from kvchat.engine.decode.loop import Writer
from tests.engine.recorder import Recorder

FOLDER = Path(__file__).parents[2] / "benchmarks"
SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "tie_word_embeddings": False,
}


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import card as module

    yield module
    for name in ("card", "decode", "pairs"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("weights, ways", [("auto", 5), ("int8", 4)])
def test_every_way_leaves_its_cache_as_it_was(bench, monkeypatch, weights, ways):
    recorder = Recorder()
    monkeypatch.setattr(Writer, "on", lambda model, device: Writer(model, recorder))
    monkeypatch.setattr(bench, "TOKENS", 6)
    found = bench.cells(SMALL, 40, weights, torch.device("cpu"))
    assert len(found) == ways
    results = bench.measured(found, 1, bandwidth=1e9)
    assert all(r["tokens_per_s"] > 0 and r["share_of_limit"] > 0 for r in results.values())
    assert recorder.replays > 0 and results.keys() == found.keys()
    whole, tenth = found["all, recorded"]["bytes"], found["10 %, recorded"]["bytes"]
    assert tenth < whole < tenth + 40 * 2 * 2 * 2 * (32 * 2 + 4)


def test_without_a_card_it_says_so(bench, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["card.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main() == 7
    assert "CUDA" in capsys.readouterr().err
