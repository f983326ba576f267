"""`benchmarks/*.py` were never run on a card: at least they compute what they compare, and their
ways write what they are said to."""

import json
import subprocess
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
    for name in {"card", "decode", "pairs", "kernels", "rivals", "decode_rivals"} & (
        set(sys.modules) - before
    ):
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


def test_rivals_decode_in_turn_and_who_is_missing_is_left_out(
    script, monkeypatch, tmp_path, capsys
):
    bench, asked = script("decode_rivals"), []
    monkeypatch.delenv(bench.SWITCH, raising=False)
    (tmp_path / "small").mkdir()
    (tmp_path / "small-bf16.gguf").touch()
    here = bench.ways_of("small", tmp_path)
    assert "llama.cpp bf16" not in here and "kvchat int4" in here and len(here) == 5
    assert capsys.readouterr().out.count(bench.SWITCH) == 2
    monkeypatch.setenv(bench.SWITCH, sys.executable)
    paths = bench.ways_of("small", tmp_path)
    assert len(paths) == 6 and "small-q4_0.gguf" in capsys.readouterr().out

    class Pretended:
        def __init__(self, way, path, depth, threads):
            self.cost = 10.0 if way.startswith("llama.cpp") else 5.0
            self.prefill = {"prefill_cpu_s": self.cost, "prefill_s": 1.0}
            self.way = way

        def write(self, tokens):
            asked.append(self.way)
            return {"cpu_ms": self.cost, "wall_ms": 1.0}

        def end(self):
            return {"peak_mb": 1.0}

    monkeypatch.setattr(bench, "Rival", Pretended)
    found = bench.measured(paths, 100, 1, rounds=2, tokens=3)
    assert asked == list(paths) * 3
    assert found["kvchat bf16"]["of_llama_cpp"] == 0.5
    assert found["kvchat bf16"]["prefill_of_llama_cpp"] == 0.5
    assert "of_llama_cpp" not in found["kvchat int4"], "its rival is not here"
    assert bench.table("a title", found).count("\n") == 1 + len(paths)


def test_a_rival_reads_and_writes(script, tmp_path, checkpoint):
    """The process itself, over a tiny checkpoint."""
    script("decode_rivals")
    from decode_rivals import HERE

    folder = checkpoint(vocab_size=40001)
    given = ("kvchat", str(folder), "auto", "adakv:budget=50%,window=4", "60", "1")
    done = subprocess.run(
        [sys.executable, str(HERE / "one_rival.py"), *given],
        input="2\n3\n", capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    first, *times, last = map(json.loads, done.stdout.splitlines())
    assert first["prefill_cpu_s"] > 0 and len(times) == 2 and last["peak_mb"] > 50
    assert all(each["cpu_ms"] > 0 for each in times)
