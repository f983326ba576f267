"""`benchmarks/*.py` were never run on a card: at least they compute what they compare, and their
ways write what they are said to."""

import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import tests.kernels.interpreted  # noqa: F401 - bfloat16 as a card has it
from kvchat.engine.decode.loop import Writer
from kvchat.kernels.reference import dense_attention
from tests.engine.recorder import Recorder
from tests.engine.tiny import SHAPE
from tests.support.closeness import assert_close

SMALL = {
    **{name: size for name, size in SHAPE.items() if not name.endswith("_id")},
    "hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture
def script(monkeypatch):
    """`script(name)`: a module of the folder, forgotten afterwards."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    before = set(sys.modules)
    yield import_module
    for name in {"card", "decode", "pairs", "kernels", "rivals"} & (set(sys.modules) - before):
        del sys.modules[name]


def varlen(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, enable_gqa, window_size=(-1, -1)):
    """What torch says of `varlen_attn`, sequence by sequence: it runs on cards only."""
    assert enable_gqa and cu_q.dtype == cu_k.dtype == torch.int32
    parts = []
    for (a, b), (c, d) in zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist()), strict=True):
        assert b - a <= max_q and d - c <= max_k
        heads, causal = [x.transpose(0, 1) for x in (k[c:d], v[c:d])], window_size == (-1, 0)
        parts.append(dense_attention(q[a:b], *heads, scale, causal=causal)[0])
    return torch.cat(parts)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_every_cell_s_ways_agree(script, monkeypatch):
    torch.manual_seed(0)
    bench = script("kernels")
    monkeypatch.setattr(bench.rivals, "varlen_attn", varlen)
    monkeypatch.setattr(bench.rivals, "_has_varlen", lambda device: True)
    cells = bench.cells(torch.device("cpu"), small=True)
    assert len({cell.name for cell in cells}) == len(cells) >= 16
    assert sum("flex" in name for cell in cells for name in cell.ways) == 5
    for cell in cells:
        assert cell.bytes or cell.flops
        ours, *others = (run() for run in cell.ways.values())
        ours = ours[-1] if isinstance(ours, tuple) else ours
        for other in others:
            other = other[-1] if isinstance(other, tuple) else other
            if other.shape != ours.shape:  # SDPA puts heads first
                other = other.reshape(ours.transpose(0, 1).shape).transpose(0, 1)
            assert_close(cell.name, ours.double(), other.double(), 1e-2)
    cell = bench.Cell("x", {}, bytes=100, flops=10, times={"kernel": [2, 4, 3], "twin": [6] * 3})
    found = bench.described(cell, bandwidth=100 / 1.5e-3, rate=1e9)
    assert found["share_of_limit"] == 0.5 and found["times_faster"] == {"twin": 2.0}


@pytest.mark.parametrize("weights, ways", [("auto", 5), ("int8", 4)])
def test_every_way_of_decoding_leaves_its_cache_as_it_was(script, monkeypatch, weights, ways):
    bench, recorder = script("card"), Recorder()
    monkeypatch.setattr(Writer, "on", lambda model, device, kernels: Writer(model, recorder))
    monkeypatch.setattr(bench, "TOKENS", 6)
    found = bench.cells(SMALL, 40, weights, torch.device("cpu"))
    assert len(found) == ways
    results = bench.measured(found, 1, bandwidth=1e9)
    assert all(r["tokens_per_s"] > 0 and r["share_of_limit"] > 0 for r in results.values())
    assert recorder.replays > 0 and results.keys() == found.keys()
    whole, tenth = found["all, recorded"]["bytes"], found["10 %, recorded"]["bytes"]
    assert tenth < whole < tenth + 40 * 2 * 2 * 2 * (32 * 2 + 4)


@pytest.mark.parametrize("name", ["card", "kernels"])
def test_without_a_card_it_ends_with_a_code(script, monkeypatch, name):
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert script(name).main() == 7
