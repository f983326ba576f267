"""Attention over parts put together: exact for any split, of empty parts, of huge logits."""

import itertools

import pytest
import torch

from kvchat.engine import ops
from kvchat.kernels import reference
from tests.kernels.naive import attention, per_head, random_entries
from tests.support.closeness import assert_attention, assert_close, assert_lse_close

BOTH = pytest.mark.parametrize("combine", [reference.combine, ops.combine], ids=["twin", "ops"])


@BOTH
@pytest.mark.parametrize("cuts", [1, 3])
@pytest.mark.parametrize("seed", range(10))
def test_combine_of_any_split_is_the_whole(combine, seed, cuts):
    generator = torch.Generator().manual_seed(seed)
    store = random_entries([50] * 2, 16, seed=seed)
    q = torch.randn(3, 4, 16, generator=generator)
    k, v = store.k.view(2, 50, 16), store.v.view(2, 50, 16)
    places = torch.randint(51, (cuts,), generator=generator).sort().values.tolist()
    edges = [0, *places, *places[2:], 50]  # of three cuts one part is always empty
    parts = [
        reference.dense_attention(q, k[:, a:b], v[:, a:b], 0.25, causal=False)
        for a, b in itertools.pairwise(edges)
    ]
    assert_attention(combine(parts), attention(q, per_head(store), 0.25), 1e-6)


@BOTH
def test_combine_survives_logits_far_beyond_the_range_of_exp(combine):
    o = [torch.full((1, 1, 2), value) for value in (1.0, 3.0)]
    lse = torch.full((1, 1), 500.0)
    joined, total = combine([(o[0], lse), (o[1], lse)])
    # a float32 near 500 has steps of 3e-5, and so has a weight that is a difference of two
    assert_close("o", joined, torch.full((1, 1, 2), 2.0), 3e-5)
    assert_lse_close("lse", total, lse + torch.log(torch.tensor(2.0)), 1e-4)


@BOTH
@pytest.mark.parametrize("empty", [0, 1, 2])
def test_a_part_without_entries_counts_for_nothing(combine, empty):
    """The first, the second, or both."""
    some = (torch.randn(2, 3, 4), torch.randn(2, 3))
    nothing = (torch.zeros(2, 3, 4), torch.full((2, 3), float("-inf")))
    parts = [(nothing, some), (some, nothing), (nothing, nothing)][empty]
    o, lse = combine(list(parts))
    want = nothing if empty == 2 else some
    assert torch.equal(o, want[0]) and torch.equal(lse, want[1])
