"""The PQ segment: the choice by hand, exact limits, bounds, cells against a scan, bytes."""

import pytest
import torch

from kvchat.engine import ops
from kvchat.engine.cache.cells import PENDING, Cells
from kvchat.engine.cache.memory import Memory
from kvchat.engine.cache.pq import PQSegment, Reads
from tests.engine.tiny import torch_backend
from tests.kernels.naive import attention
from tests.kernels.test_pq import CENTROIDS, KEYS, QUERIES
from tests.support.closeness import assert_attention, assert_close, assert_lse_close

VALUES = torch.tensor([[[1.0, 0], [0, 1], [1, 1], [2, 0], [0, 2]]])


def made(keys, values, centroids, reads, start=0) -> PQSegment:
    """A segment of `keys, values [H, N, D]` with a code book."""
    codes = ops.pq_assign(keys[:, reads.sinks :], centroids)
    return PQSegment(torch.cat((keys, values), dim=-1), centroids, codes, reads, start)


def random_segment(heads=2, group=3, entries=300, dim=16, count=40, subspaces=2, size=8, seed=0):
    """A segment with centroids that are some of its keys, and one query."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, heads, entries, dim, generator=generator)
    q = torch.randn(1, heads * group, dim, generator=generator)
    centroids = keys[:, 5 : 5 + size].unflatten(-1, (subspaces, -1)).transpose(1, 2).contiguous()
    return made(keys, values, centroids, Reads(4, 0, count, 1)), keys, values, q


def over(q, keys, values, entries, scale):
    """Exact attention over the entries `entries[h]` of each head."""
    parts = [(keys[h, r], values[h, r], None) for h, r in enumerate(entries)]
    return attention(q, parts, scale)


def test_attention_over_the_chosen_entries_by_hand():
    """Oracle 8.1, with values of two dims in heads of four."""
    values = torch.nn.functional.pad(VALUES, (0, 2))
    for count, o, lse in (
        (3, [[0.457330, 1.023448], [0.123443, 1.006329]], [2.932351, 2.241977]),
        (5, [[0.675558, 0.915210], [0.611727, 0.813387]], [3.170400, 2.656561]),
    ):
        segment = made(KEYS, values, CENTROIDS, Reads(0, 0, count, 1))
        got, got_lse = segment.attend(QUERIES[None], 0.5, torch_backend())
        assert float((got[0, :, :2] - torch.tensor(o)).abs().max()) < 1e-6
        assert float((got_lse[0] - torch.tensor(lse)).abs().max()) < 1e-6
    segment.reads = Reads(0, 0, 3, 1)
    assert segment.choose(QUERIES, 0.5).tolist() == [[0, 1, 4]]


@pytest.mark.parametrize("subspaces, size", [(2, 8), (2, 100), (4, 16)])
def test_one_query_attends_to_sinks_and_to_what_its_codes_rank_first(subspaces, size):
    """With and without an inverted list; missing entries cost at most their attention."""
    segment, keys, values, q = random_segment(subspaces=subspaces, size=size)
    assert (segment.cells is not None) == (size**subspaces <= 4096)
    o, lse = segment.attend(q, 0.25, torch_backend())
    scores = torch.einsum(
        "hgd,hnd->hgn", q.view(2, 3, 16), ops.pq_decode(segment.codes, segment.centroids)
    )
    worth = torch.softmax(scores / 4, dim=-1).sum(dim=1)
    chosen = [[0, 1, 2, 3, *(4 + entry for entry in ops.pq_select(w[None], 40)[0])] for w in worth]
    want, want_lse = over(q, keys, values, chosen, 0.25)
    assert_close("o", o, want, 1e-5)
    assert_lse_close("lse", lse, want_lse, 1e-5)
    full, full_lse = over(q, keys, values, [range(300)] * 2, 0.25)
    missed = 1 - torch.exp(want_lse - full_lse)  # [1, H*G]
    bound = 2 * missed * values.norm(dim=-1).max()
    assert bool(((o - full).norm(dim=-1) <= bound + 1e-5).all())


def test_entries_for_everything_or_several_queries_are_exact_with_any_code_book():
    """By hand, and the declared property of several queries."""
    segment, keys, values, q = random_segment(count=296)
    segment.centroids = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(9))
    assert_attention(
        segment.attend(q, 0.25, torch_backend()),
        over(q, keys, values, [range(300)] * 2, 0.25),
        1e-6,
    )
    segment.reads = Reads(4, 0, 10, 1)
    several = torch.cat((q, q.flip(1), q))
    o, _ = segment.attend(several, 0.25, torch_backend())
    want, _ = over(several, keys, values, [range(300)] * 2, 0.25)
    assert_close("o", o, want, 1e-6)


@pytest.mark.parametrize("aggregate", ["softmax_sum", "max", "logit_sum"])
def test_cells_choose_the_entries_that_a_scan_of_the_codes_chooses(aggregate):
    """With ties inside cells, between them (a rounded table), and where all underflow."""
    generator = torch.Generator().manual_seed(0)
    for heads, group, entries, size, count in (
        (2, 3, 500, 8, 40),
        (3, 1, 400, 4, 399),
        (1, 4, 2000, 64, 1500),
    ):
        codes = torch.randint(size, (heads, entries, 2), dtype=torch.uint8, generator=generator)
        cells = Cells.of(codes[:, : entries - 30], size)
        for end in (entries - 10, entries):
            cells = cells.extended(codes[:, :end], 20 if end < entries else 10, size)
        assert cells.pending.shape[1] == 30
        table = torch.randn(heads, group, 2, size, generator=generator)
        for case in (table, table.round(), 100 * table, 0 * table):
            worth = ops.pq_worth(ops.pq_score(case, codes), aggregate)
            each = cells.worth(case, aggregate)
            assert_close("worth", each.gather(1, cells_of(codes, size)), worth, 1e-5)
            chosen, gained = cells.select(each, count)
            assert torch.equal(chosen, ops.pq_select(worth, count))
            assert_close("gained", gained, worth.gather(1, chosen.long()).sum(1), 1e-5)


def cells_of(codes, size):
    return codes[..., 0].long() * size + codes[..., 1]


def test_entries_that_wait_are_sorted_in_when_there_are_many():
    codes = torch.randint(8, (2, PENDING + 60, 2), dtype=torch.uint8)
    cells = Cells.of(codes[:, :40], 8).extended(codes[:, :50], 10, 8)
    assert cells.pending.shape == (2, 10)
    cells = cells.extended(codes, PENDING + 10, 8)
    again = Cells.of(codes, 8)
    assert all(
        torch.equal(a, b) for a, b in zip(vars(cells).values(), vars(again).values(), strict=True)
    )


def parts_of(segment):
    return segment.centroids, segment.codes, segment.reads, segment.start, segment.cells


def test_tensors_are_everything_and_load_is_their_inverse():
    """One byte for each part of a code; bytes are those of the tensors."""
    for subspaces, size, bytes_each in ((2, 8, 2), (4, 16, 4)):
        segment, keys, _, q = random_segment(subspaces=subspaces, size=size)
        assert segment.codes.nbytes == 2 * 296 * bytes_each
        held = Memory.of(segment.tensors().values())
        assert segment.memory() == held + segment.late.memory()
        want = segment.attend(q, 0.25, torch_backend())
        again = PQSegment.load({n: t.clone() for n, t in segment.tensors().items()}, segment.span)
        assert torch.equal(again.attend(q, 0.25, torch_backend())[0], want[0])
        elsewhere = PQSegment(segment.pool.to("meta"), *parts_of(segment))
        entries, total = segment.pool.nbytes, segment.memory().total
        assert elsewhere.memory() == Memory(device=total - entries, host=entries)
        segment.extend(keys[:, :70], keys[:, :70])
        again = PQSegment.load({n: t.clone() for n, t in segment.tensors().items()}, segment.span)
        assert (again.span, again.lengths, again.reads) == ((0, 370), (370, 370), segment.reads)
        both = [s.attend(q, 0.25, torch_backend())[0] for s in (segment, again)]
        assert torch.equal(*both)
        k, _ = segment.withdraw(300)
        assert torch.equal(k, keys[:, :70]) and segment.span == (0, 300)
        assert torch.equal(segment.attend(q, 0.25, torch_backend())[0], want[0])
