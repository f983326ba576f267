"""Machine code that is kept for the next process: read again, and compiled anew where it cannot be
read or written."""

import numpy as np
import pytest
from numba.core.caching import FunctionCache, IndexDataCacheFile

from kvchat.kernels.cpu import numbers

X, Y = np.arange(3, dtype=np.float32), np.arange(3, dtype=np.uint16)


def _sum(x):
    total = 0.0
    for i in range(x.size):
        total += x[i]
    return total


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """The function as a new process has it, with its code in a folder of the test."""
    monkeypatch.setattr(numbers, "kept", lambda: str(tmp_path))
    return lambda: numbers.jit()(_sum)


def hits(function, given=X):
    assert function(given) == 3.0
    return sum(function.stats.cache_hits.values())


def test_code_is_read_again(compiled):
    assert [hits(compiled()) for _ in range(3)] == [0, 1, 1]


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("left", [0, 10, 200])
def test_damaged_files_are_written_again(compiled, tmp_path, suffix, left):
    hits(compiled())
    (file,) = tmp_path.rglob(f"*.{suffix}")
    file.write_bytes(file.read_bytes()[:left])
    assert [hits(compiled()) for _ in range(2)] == [0, 1]


def test_a_full_disk_costs_time_only(compiled, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(IndexDataCacheFile, "_save_data", full)
        assert [hits(compiled()) for _ in range(2)] == [0, 0]
    assert [hits(compiled()) for _ in range(2)] == [0, 1]


def test_code_for_other_arguments_is_not_taken(compiled, monkeypatch):
    """The index of one process with the file of another."""
    for given in (X, Y):
        hits(compiled(), given)
    with monkeypatch.context() as patched:
        patched.setattr(FunctionCache, "_index_key", lambda *_: "the same")
        assert [hits(compiled(), given) for given in (X, Y, Y)] == [0, 0, 1]
