"""What PQCache reads for a token, on a CPU: torch's choice, and copies of the entries."""

import numpy as np
import pytest
import torch

from kvchat.engine import ops
from kvchat.engine.cache.lookup import Reads
from kvchat.engine.cache.pq import PQSegment
from kvchat.kernels.cpu import choice
from kvchat.kernels.cpu.numbers import view
from tests.support.closeness import assert_close

SCALE = 0.2
NONE = np.empty(0, np.float32)


def segment(heads, entries, dim, count, parts, size, late=0, aggregate=0, dtype=torch.float32):
    """A segment with random centroids; `late` entries came from the window, 7 at a time."""
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, heads, entries, dim, generator=generator).to(dtype)
    centroids = torch.randn(heads, parts, size, dim // parts, generator=generator)
    first = entries - late
    codes = ops.pq_assign(k[:, 4:first].float(), centroids)
    pool = torch.cat((k, v), dim=-1)[:, :first].contiguous()
    found = PQSegment(pool, centroids, codes, Reads(4, 0, count, 1, aggregate), 0)
    for a in range(first, entries, 7):
        found.extend(k[:, a : a + 7], v[:, a : a + 7])
    return found, k, v


def chosen_by(found, q, workers=1):
    """The kernel's choice `[H, count]`, ascending, its worth, and copies `[H, 4 + count, D]`."""
    (heads, parts, size, _), count = found.centroids.shape, found.reads.count
    none = np.empty((heads, 0), np.int32)
    cells, items = (none, none, none), found.codes.shape[1]
    if (listed := found.cells) is not None:
        cells = tuple(map(view, (listed.offset, listed.order, listed.pending)))
        items = listed.count.shape[1]
    room = (
        np.full((workers, parts, size), np.nan, np.float32),
        *np.full((4, workers, items + 3), np.nan, np.float32),
        *np.full((2, workers, items + 3), 7, np.int32),
    )
    numbers = torch.full((heads, count), -1, dtype=torch.int32)
    gained = np.empty(heads, np.float32)
    k, v = found.pool.new_empty(2, heads * (4 + count), found.pool.shape[2] // 2)
    number, level = np.empty(heads, np.int64), (np.empty((heads, 1, 0, 0), np.float32), none, NONE)
    call = choice.choose_parallel if workers > 1 else choice.choose
    worth = call(
        q.numpy(), view(found.centroids), view(found.codes), np.float32(SCALE),
        found.reads.aggregate, count, NONE, 4, *cells, *level, view(found.pool), view(found.pool),
        found.pool.shape[2] // 2, view(found.late.k), view(found.late.v), 0, *room, view(numbers),
        number, gained, view(k), view(v),
    )  # fmt: skip
    assert number.tolist() == [count] * heads
    return numbers, worth, k.view(heads, 4 + count, -1), v.view(heads, 4 + count, -1)


CASES = {  # heads, queries of each, entries, dim, count, parts, size, late
    "cells": (2, 3, 300, 16, 40, 2, 8, 0),
    "cells, some waiting": (3, 4, 500, 16, 77, 2, 8, 30),
    "four parts, nearly all": (3, 1, 400, 16, 330, 4, 8, 63),
    "one part": (1, 2, 200, 8, 5, 1, 16, 14),
    "no list": (2, 3, 300, 16, 40, 2, 100, 28),
    "no list, one entry": (2, 7, 2000, 32, 1, 4, 256, 0),
}


@pytest.mark.parametrize("aggregate", [0, 1, 2])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_choice_and_the_copies(case, workers, aggregate):
    heads, group, entries, dim, count, parts, size, late = case
    found, k, v = segment(heads, entries, dim, count, parts, size, late, aggregate)
    q = torch.randn(heads * group, dim, generator=torch.Generator().manual_seed(1))
    numbers, worth, keys, values = chosen_by(found, q, workers)
    want = found.choose(q, SCALE)
    assert torch.equal(numbers.sort(dim=1).values, want)
    each = worth / heads if aggregate == 2 else worth / heads / group
    expected = float(found.mass) * (group if aggregate == 2 else 1)
    assert abs(each - expected) <= 1e-5 * abs(expected)
    sinks = torch.arange(4).expand(heads, -1)
    rows = torch.cat((sinks, numbers + 4), dim=1).long()[..., None].expand(-1, -1, dim)
    assert torch.equal(keys, k.gather(1, rows)) and torch.equal(values, v.gather(1, rows))


@pytest.mark.parametrize("factor", [0.0, 1e3])
@pytest.mark.parametrize("size", [8, 100])
def test_of_equal_worth_the_first_are_chosen(size, factor):
    """All alike, and where but one cell has any attention that a float can hold."""
    found, _, _ = segment(2, 500, 16, 77, 2, size, 21)
    q = factor * torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
    numbers = chosen_by(found, q)[0]
    if factor == 0:
        assert torch.equal(numbers.sort(dim=1).values, torch.arange(77).expand(2, -1).int())
    best = ops.pq_worth(ops.pq_score(ops.pq_table(q, found.centroids, SCALE), found.codes), "max")
    for own, worth in zip(numbers.tolist(), best, strict=True):
        assert len(set(own)) == 77
        chosen = torch.zeros(len(worth), dtype=torch.bool)
        chosen[own] = True
        assert float(worth[~chosen].max()) <= float(worth[chosen].min()) + 1e-30


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_copies_of_16_bits(dtype):
    found, k, v = segment(2, 300, 16, 40, 2, 8, 21, dtype=dtype)
    numbers, _, keys, values = chosen_by(found, torch.randn(6, 16))
    rows = (numbers + 4).long()[..., None].expand(-1, -1, 16)
    assert_close("keys", keys[:, 4:].float(), k.gather(1, rows).float(), 0)
    assert_close("values", values[:, 4:].float(), v.gather(1, rows).float(), 0)
