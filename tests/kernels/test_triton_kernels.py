"""Kernels other than attention against their twins: odd sizes, empty parts, padding of NaN, dtypes.

In half precision the error against fp32 is at most twice that of plain torch.
"""

import pytest
import torch

from kvchat.engine import ops
from kvchat.engine.cache.cells import Cells
from kvchat.kernels import low_bits, mass, merge, norm_rope, pq, reference, retrieval
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


MASSES = [(1, 1, 4, 63, 32), (5, 2, 3, 100, 48), (37, 2, 1, 63, 80), (9, 1, 16, 100, 16),
          (8, 1, 2, 500, 16)]  # fmt: skip


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
@pytest.mark.parametrize("before, behind", [(True, True), (False, True), (False, False)])
def test_a_sum_with_norms_on_both_sides(before, behind, dtype, device):
    """As families have them: weights in fp32, a scaled residual, no norm before the next part."""
    x, delta = normal(5, 100, dtype=dtype), normal(5, 100, dtype=dtype, seed=1)
    weight, own = torch.linspace(0.5, 2, 100), torch.linspace(2, 0.5, 100)
    given = weight if before else None, 1e-5, own if behind else None, 0.22
    got = run(norm_rope.add_rms_norm, device, x, delta, *given)
    plain = reference.add_rms_norm(x, delta, *given)
    exact = reference.add_rms_norm(x.float(), delta.float(), *given)
    for name, *each in zip(("sum", "normed"), got, plain, exact, strict=True):
        assert_as_good(name, *each)
    assert before or got[0] is got[1] or torch.equal(*got)


PLACED = [(1, 2, 4, 32, "", False), (3, 2, 1, 48, "head", True), (2, 3, 2, 16, "all", True)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens, heads, group, dim, norm, scaled", PLACED)
def test_entries_are_normed_turned_and_put_in_place(
    tokens, heads, group, dim, norm, scaled, dtype, device
):
    queries = heads * group
    joined = normal(tokens, (queries + 2 * heads) * dim + 16, dtype=dtype)[:, :-16]
    phase = torch.rand(tokens, dim // 2) * 6
    sizes = {"": None, "head": (dim, dim), "all": (queries * dim, heads * dim)}[norm]
    norms = None if sizes is None else tuple(torch.linspace(0.5, 2, n) for n in sizes)
    beside = (torch.linspace(0.5, 1, dim), torch.rand(tokens) + 1) if scaled else (None, None)

    def placed(kernel, joined):
        stores = torch.zeros(2, heads, 7, dim, dtype=joined.dtype, device=joined.device)
        q = kernel(joined, *turned, *stores, place, own, 1e-5, *rest)
        return q.cpu(), *stores.cpu()

    def there(x):
        return None if x is None else tuple(y.to(device) for y in x)

    turned, place = (phase.cos().to(device), phase.sin().to(device)), torch.tensor([4]).to(device)
    own, rest = there(norms), there(beside) if scaled else beside
    got = placed(ops._loaded("place:place_entries"), joined.to(device))
    turned, place, own, rest = (phase.cos(), phase.sin()), torch.tensor([4]), norms, beside
    plain = placed(reference.place_entries, joined)
    exact = placed(reference.place_entries, joined.float())
    for name, *each in zip(("q", "k", "v"), got, plain, exact, strict=True):
        assert_as_good(name, *each)
    assert not got[1][:, :4].any() and not got[2][:, 4 + tokens :].any()


FEW = [(1, 32, 64), (3, 40, 320), (20, 16, 256), (64, 100, 128)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens, outputs, inputs", FEW)
def test_products_with_few_bits(tokens, outputs, inputs, dtype, device):
    """Odd sizes, a bias, scales that are a part of wider ones."""
    x, bias = normal(tokens, inputs + 3, dtype=dtype)[:, :-3], normal(outputs, dtype=dtype, seed=1)
    codes = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    scale = torch.rand(outputs).bfloat16() / 100
    for given in (None, bias):
        got = run(low_bits.int8_product, device, x, codes, scale, given)
        wide = None if given is None else given.float()
        exact = reference.int8_product(x.float(), codes, scale, wide)
        assert_as_good("int8", got, reference.int8_product(x, codes, scale, given), exact)
    for group in (32, 64, 128):
        if inputs % group:
            continue
        packed = torch.randint(256, (outputs, inputs // 2), dtype=torch.uint8)
        scales = normal(inputs // group, outputs + 2, 2, dtype=torch.bfloat16)[:, 1:-1]
        numbers = run(low_bits.int4_numbers, device, packed, scales, dtype)
        assert torch.equal(numbers, reference.int4_numbers(packed, scales, dtype))
        got = run(low_bits.int4_product, device, x, packed, scales, bias)
        exact = reference.int4_product(x.float(), packed, scales, bias.float())
        assert_as_good("int4", got, reference.int4_product(x, packed, scales, bias), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads, dim", [(1, 16), (20, 48), (32, 128)])
def test_rope_and_gates(heads, dim, dtype, device):
    x = normal(7, heads + 2, dim, dtype=dtype)[:, 1:-1]  # heads of a larger store
    phase = torch.rand(7, dim // 2) * 6
    gate, up = 4 * normal(7, 600, dtype=dtype)[:, :300], normal(7, 300, dtype=dtype, seed=1)
    gates = (("swiglu", gate, up), ("geglu", gate, up))
    for name, *given in (("rope", x, phase.cos(), phase.sin()), *gates):
        twin = getattr(reference, name)
        got = run(getattr(norm_rope, name), device, *given)
        assert_as_good(name, got, twin(*given), twin(*(part.float() for part in given)))


@pytest.mark.parametrize("count", [1, 13, 63])
def test_gathered_rows_are_copies(count):
    store = torch.full((2, 60, 2, 48), float("nan"), dtype=torch.bfloat16)
    pool = store[:, :50]
    pool.copy_(normal(2, 50, 2, 48))
    ids = torch.randint(50, (2, count), dtype=torch.int32)
    assert torch.equal(ops.gather_entries(pool, ids), reference.gather_entries(pool, ids))


def test_every_operation_of_a_card_has_its_launcher():
    """By name: what was moved is not found before a card is there."""
    assert len(ops.LAUNCHERS) == len(set(ops.LAUNCHERS)) > 15
    for path in ops.LAUNCHERS:
        launcher = ops._loaded(path)
        assert launcher is not None and hasattr(reference, launcher.__name__), path


@pytest.mark.gpu
def test_entries_come_out_of_pinned_host_memory():
    pool, ids = normal(2, 50, 128), torch.randint(50, (2, 13), dtype=torch.int32)
    late = (pool[:, :0, :64], pool[:, :0, :64])
    given = tuple(each.cuda() for each in late), ids.cuda(), 0, 13
    got = retrieval.pq_fetch(pool.pin_memory(), *given)
    assert got.is_cuda and torch.equal(got.cpu(), reference.gather_entries(pool, ids))
    with pytest.raises(AssertionError, match="pinned"):
        retrieval.pq_fetch(pool, *given)


@pytest.mark.parametrize("parts, count", [(2, 64), (4, 70), (16, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_assigned_codes(parts, count, dtype, device):
    x, centroids = normal(2, 40, 48, dtype=dtype), normal(2, parts, count, 48 // parts, seed=1)
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


@pytest.mark.parametrize(
    "entries, count", [(63, 63), (100, 37), (2000, 1), (9000, 700), (4200, 4199), (5, 9)]
)
def test_selected_rows_are_the_best_and_of_equal_ones_the_first(entries, count, device):
    """Signs, ties, zeros of both signs and entries of no worth at all."""
    tied = torch.randint(4, (2, entries)).float() - 2
    tied[:, ::5] = -0.0
    tied[:, 1::7] = float("-inf")
    for worth in (normal(2, entries) * 1e-3, tied):
        got = run(pq.pq_select, device, worth, count)
        assert torch.equal(got, reference.pq_select(worth, count))


LISTS = [(1, 2, 8, 40, "softmax_sum"), (3, 1, 16, 7, "max"), (2, 3, 4, 80, "logit_sum"),
         (1, 12, 2, 50, "softmax_sum")]  # fmt: skip


@pytest.mark.parametrize("group, parts, count, wanted, aggregate", LISTS)
def test_entries_are_found_by_their_cells(group, parts, count, wanted, aggregate, device):
    """Ranked as the twin ranks them, and fetched: sinks, a pool, entries that came later."""
    heads, dim, sinks, pooled, later = 2, 24, 3, 180, 20
    q = normal(heads * group, dim)
    centroids = normal(heads, parts, count, dim // parts, seed=1)
    codes = torch.randint(count, (heads, pooled + later - sinks, parts), dtype=torch.uint8)
    cells = Cells.of(codes, count)
    state = torch.zeros(heads + 1)
    given = q, centroids, cells.count, wanted, 0.3, aggregate
    want_state = state.clone()
    want = reference.pq_rank(*given, want_state)
    here = state.to(device)
    ends = run(retrieval.pq_rank, device, *given, here)
    assert torch.equal(ends, want) and bool((ends[:, -1] == wanted).all())
    assert_close("worth", here.cpu(), want_state, 1e-5)
    pool = normal(heads, pooled, 2 * dim, dtype=torch.bfloat16)
    late = normal(heads, 30, dim, seed=2).bfloat16(), normal(heads, 30, dim, seed=3).bfloat16()
    for live in (later, 0):
        beyond = tuple(store[:, :live] for store in late)
        pooled_now = pool if live else normal(heads, pooled + later, 2 * dim).bfloat16()
        given = pooled_now, beyond, cells.order, sinks, wanted
        got = run(retrieval.pq_fetch, device, *given)  # an order alone
        assert torch.equal(got, reference.pq_fetch(*given))
        got = run(retrieval.pq_fetch, device, *given, cells.offset, ends)
        assert torch.equal(got, reference.pq_fetch(*given, cells.offset, ends))
        every = torch.cat((pooled_now, torch.cat(beyond, dim=2)), dim=1)
        worth = cells.worth(reference.pq_table(q, centroids, 0.3), aggregate)
        chosen = cells.select(worth, wanted)[0] + sinks
        for head in range(heads):
            own = every[head, torch.cat((torch.arange(sinks), chosen[head].long()))]
            assert torch.equal(torch.sort(got[head, :, 0]).values, torch.sort(own[:, 0]).values)
