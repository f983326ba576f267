"""Kernels other than attention against their twins: odd sizes, empty parts, padding of NaN, dtypes.

In half precision the error against fp32 is at most twice that of plain torch.
"""

import pytest
import torch

from kvchat.engine import ops
from kvchat.kernels import mass, merge, norm_rope, pq, reference
from tests.support.closeness import assert_close, relative_rms

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run(kernel, device, *args, **kwargs):
    """On the device, back on the CPU."""

    def move(x, where):
        if isinstance(x, tuple | list):
            return type(x)(move(part, where) for part in x)
        return x.to(where) if isinstance(x, torch.Tensor) else x

    return move(kernel(*move(args, device), **kwargs), torch.device("cpu"))


def assert_as_good(name, got, plain, exact):
    """No worse than twice plain torch in the same dtype, and fp32 to rounding."""
    assert got.dtype == plain.dtype
    bound = max(2 * relative_rms(plain, exact), 1e-6)
    assert_close(name, got, exact, bound)


def scene(window, heads, group, entries, dim, dtype):
    """Queries, keys with NaN behind every head, and the true lse of causal queries."""
    store = torch.full((heads, entries + 3, dim), float("nan"), dtype=dtype)
    store[:, :entries] = normal(heads, entries, dim, dtype=dtype, seed=1)
    k, q = store[:, :entries], normal(window, heads * group, dim, dtype=dtype)
    scale = dim**-0.5
    _, lse = reference.dense_attention(q, k, k, scale, causal=True)
    return q, k, lse, torch.arange(entries - window, entries) + 1, scale


MASSES = [(1, 1, 4, 63, 32), (5, 2, 3, 100, 48), (37, 2, 1, 63, 80), (9, 1, 16, 200, 16),
          (8, 1, 2, 2000, 16)]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", MASSES)
def test_masses_are_those_of_the_twins(shape, dtype, device):
    given = scene(*shape, dtype)
    got = run(mass.window_mass, device, *given)
    assert_close("window", got, reference.window_mass(*given), 1e-5)
    for power in (1, 2):
        got = run(mass.column_mass, device, *given, power)
        assert_close(f"power {power}", got, reference.column_mass(*given, power), 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_merged_runs(dtype, device):
    lengths = torch.tensor([1, 5, 0, 40, *[1] * 20, 2])
    entries, weight = normal(68, 48, dtype=dtype), torch.rand(68)
    got = run(merge.merge_entries, device, entries, weight, lengths)
    plain = reference.merge_entries(entries, weight, lengths)
    assert_as_good("merged", got, plain, reference.merge_entries(entries.float(), weight, lengths))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_combined_parts(count, device):
    parts = [(normal(3, 4, 48, seed=s), normal(3, 4, seed=9 + s) * 5) for s in range(count)]
    for _, lse in parts:
        lse[1] = float("-inf")  # a query that sees nothing at all
    parts[-1][1][0] = float("-inf")
    parts[0] = (parts[0][0].half(), parts[0][1])
    o, lse = run(merge.combine, device, parts)
    want, want_lse = reference.combine(parts)
    seen = want_lse > float("-inf")
    assert_close("o", o[seen], want[seen], 1e-6)
    assert_close("lse", lse[seen], want_lse[seen], 1e-6)
    assert bool((lse[~seen] == float("-inf")).all())
    assert count == 1 or not o[~seen].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [63, 100, 2048])
def test_norms(hidden, dtype, device):
    x, delta = normal(5, hidden, dtype=dtype), normal(5, hidden, dtype=dtype, seed=1)
    weight = torch.linspace(0.5, 2, hidden).to(dtype)
    got = run(norm_rope.rms_norm, device, x, weight, 1e-5)
    exact = reference.rms_norm(x.float(), weight.float(), 1e-5)
    assert_as_good("norm", got, reference.rms_norm(x, weight, 1e-5), exact)
    added, normed = run(norm_rope.add_rms_norm, device, x, delta, weight, 1e-5)
    assert torch.equal(added, x + delta)
    exact = reference.rms_norm((x + delta).float(), weight.float(), 1e-5)
    assert_as_good("sum", normed, reference.rms_norm(x + delta, weight, 1e-5), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads, dim", [(1, 16), (20, 48), (32, 128)])
def test_rope_and_swiglu(heads, dim, dtype, device):
    x = normal(7, heads + 2, dim, dtype=dtype)[:, 1:-1]  # heads of a larger store
    phase = torch.rand(7, dim // 2) * 6
    gate, up = 4 * normal(7, 300, dtype=dtype), normal(7, 300, dtype=dtype, seed=1)
    for name, *given in (("rope", x, phase.cos(), phase.sin()), ("swiglu", gate, up)):
        twin = getattr(reference, name)
        got = run(getattr(norm_rope, name), device, *given)
        assert_as_good(name, got, twin(*given), twin(*(part.float() for part in given)))


@pytest.mark.parametrize("count", [1, 13, 63])
def test_gathered_rows_are_copies(count, device):
    store = torch.full((2, 60, 2, 48), float("nan"), dtype=torch.bfloat16)
    pool = store[:, :50]
    pool.copy_(normal(2, 50, 2, 48))
    ids = torch.randint(50, (2, count), dtype=torch.int32)
    want = reference.gather_entries(pool, ids)
    assert torch.equal(run(merge.gather_entries, device, pool, ids), want)
    assert torch.equal(ops.gather_entries(pool, ids), want)


@pytest.mark.gpu
def test_entries_come_out_of_pinned_host_memory():
    pool, ids = normal(2, 50, 2, 64), torch.randint(50, (2, 13), dtype=torch.int32)
    got = merge.gather_entries(pool.pin_memory(), ids.cuda())
    assert got.is_cuda and torch.equal(got.cpu(), reference.gather_entries(pool, ids))
    with pytest.raises(AssertionError, match="pinned"):
        merge.gather_entries(pool, ids.cuda())


@pytest.mark.parametrize("parts, count", [(2, 64), (4, 70), (16, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_assigned_codes(parts, count, dtype, device):
    x, centroids = normal(2, 100, 48, dtype=dtype), normal(2, parts, count, 48 // parts, seed=1)
    centroids[:, :, 2] = centroids[:, :, 1]  # of equal ones the first
    got = run(pq.pq_assign, device, x, centroids)
    assert torch.equal(got, reference.pq_assign(x, centroids))


@pytest.mark.parametrize("group, parts, count", [(1, 2, 64), (3, 4, 256), (16, 1, 5)])
def test_scores_are_sums_of_table_entries(group, parts, count, device):
    table = normal(2, group, parts, count)
    codes = torch.randint(count, (2, 300, parts), dtype=torch.uint8)
    spaced = torch.stack((codes, codes), dim=2)[:, :, 0]  # codes of entries need not touch
    got = run(pq.pq_score, device, table, spaced)
    assert_close("scores", got, reference.pq_score(table, codes), 1e-6)


@pytest.mark.parametrize("entries, count", [(63, 63), (100, 37), (2000, 1), (5000, 700), (5, 9)])
def test_selected_rows_are_the_best_and_of_equal_ones_the_first(entries, count, device):
    """Signs, ties, zeros of both signs and entries of no worth at all."""
    tied = torch.randint(4, (2, entries)).float() - 2
    tied[:, ::5] = -0.0
    tied[:, 1::7] = float("-inf")
    for worth in (normal(2, entries) * 1e-3, tied):
        got = run(pq.pq_select, device, worth, count)
        assert torch.equal(got, reference.pq_select(worth, count))
