"""`benchmarks/kernels.py` was never run on a card: at least its cells compute what they compare."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import tests.kernels.interpreted  # noqa: F401 - bfloat16 as a card has it
from kvchat.kernels.reference import dense_attention
from tests.support.closeness import assert_close

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import kernels as module

    yield module
    del sys.modules["kernels"]


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
def test_every_cell_s_ways_agree(bench, monkeypatch):
    torch.manual_seed(0)
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


def test_without_a_card_it_says_so(bench, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["kernels.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main() == 7
    assert "CUDA" in capsys.readouterr().err


def test_shares_are_of_the_nearer_limit(bench):
    cell = bench.Cell(
        "x", {}, bytes=100, flops=10, times={"kernel": [2.0, 4.0, 3.0], "twin": [6.0] * 3}
    )
    found = bench.described(cell, bandwidth=100 / 1.5e-3, rate=1e9)
    assert found["share_of_limit"] == 0.5 and found["times_faster"] == {"twin": 2.0}


def test_a_rival_that_does_not_run_is_left_out_and_ours_may_not_be(bench, capsys):
    def broken():
        raise RuntimeError("no such card\nand more")

    assert bench.runs("cell", "flex", lambda: 1)
    assert not bench.runs("cell", "flex", broken)
    assert capsys.readouterr().err == "cell: flex does not run: no such card\n"
    with pytest.raises(RuntimeError):
        bench.runs("cell", "kernel", broken)
