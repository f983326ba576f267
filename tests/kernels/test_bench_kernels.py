"""`benchmarks/kernels.py` was never run on a card: at least its cells compute what they compare."""

import sys
from pathlib import Path

import pytest
import torch
from closeness import assert_close

import kernels.interpreted  # noqa: F401 - bfloat16 as a card has it

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "kernels")  # the tests' own package of that name
    import kernels as module

    yield module
    del sys.modules["kernels"]


def test_every_cell_s_kernel_and_twin_agree(bench):
    torch.manual_seed(0)
    cells = bench.cells(torch.device("cpu"), small=True)
    assert len({cell.name for cell in cells}) == len(cells) >= 17
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
    assert "there is none here" in capsys.readouterr().err


def test_shares_are_of_the_nearer_limit(bench):
    cell = bench.Cell(
        "x", {}, bytes=100, flops=10, times={"kernel": [2.0, 4.0, 3.0], "twin": [6.0] * 3}
    )
    found = bench.described(cell, bandwidth=100 / 1.5e-3, rate=1e9)
    assert found["share_of_limit"] == 0.5 and found["times_faster"] == {"twin": 2.0}
