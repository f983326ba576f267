"""The specification of attention against a loop in float64, and the exactness of `combine`."""

import itertools

import pytest
import torch

from kvchat.engine import ops
from kvchat.kernels import reference
from tests.kernels.naive import attention, per_head, random_entries
from tests.support.closeness import assert_close, assert_lse_close

SHAPES = [  # tokens, heads, group, dim, entries
    (1, 2, 1, 16, 63),
    (5, 2, 2, 32, 100),
    (3, 1, 4, 64, 63),
    (2, 2, 8, 128, 100),
    (1, 3, 4, 80, 1),
]


def uniform(tokens, heads, group, dim, entries, seed=0):
    store = random_entries([entries] * heads, dim, seed=seed)
    q = torch.randn(tokens, heads * group, dim, generator=torch.Generator().manual_seed(seed + 1))
    return q, store, store.k.view(heads, entries, dim), store.v.view(heads, entries, dim)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_dense_attention_is_softmax(shape, causal):
    q, store, k, v = uniform(*shape)
    scale = shape[3] ** -0.5
    o, lse = reference.dense_attention(q, k, v, scale, causal=causal)
    want, want_lse = attention(q, per_head(store), scale, causal)
    assert_close("o", o, want, 1e-6)
    assert_lse_close("lse", lse, want_lse, 1e-5)


def test_a_query_before_the_first_row_sees_nothing():
    q, store, k, v = uniform(5, 2, 2, 16, 3)
    o, lse = reference.dense_attention(q, k, v, 0.25, causal=True)
    want, want_lse = attention(q, per_head(store), 0.25, causal=True)
    assert torch.equal(o[:2], torch.zeros_like(o[:2]))
    assert_lse_close("lse", lse, want_lse, 1e-5)
    assert_close("o", o, want, 1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("tokens", [1, 4])
def test_ragged_attention_sees_each_head_s_rows_only(tokens, group, bias):
    store = random_entries([63, 0, 1, 100], dim=32, padding=3, bias=bias)
    q = torch.randn(tokens, 4 * group, 32, generator=torch.Generator().manual_seed(9))
    o, lse = reference.ragged_attention(q, [store], 0.2)
    want, want_lse = attention(q, per_head(store), 0.2)
    assert_close("o", o, want, 1e-6)
    assert_lse_close("lse", lse, want_lse, 1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_combine_of_any_split_is_the_whole(seed):
    generator = torch.Generator().manual_seed(seed)
    entries = 50
    q, store, k, v = uniform(3, 2, 2, 16, entries, seed)
    cuts = torch.randint(entries + 1, (3,), generator=generator).sort().values.tolist()
    edges = [0, *cuts, cuts[-1], entries]  # one part is always empty
    parts = [
        reference.dense_attention(q, k[:, a:b], v[:, a:b], 0.25, causal=False)
        for a, b in itertools.pairwise(edges)
    ]
    assert any(bool((lse == float("-inf")).all()) for _, lse in parts)
    want, want_lse = attention(q, per_head(store), 0.25)
    for o, lse in (reference.combine(parts), ops.combine([ops.combine(parts[:2]), *parts[2:]])):
        assert_close("o", o, want, 1e-6)
        assert_lse_close("lse", lse, want_lse, 1e-5)


BOTH = pytest.mark.parametrize("combine", [reference.combine, ops.combine], ids=["twin", "ops"])


@BOTH
@pytest.mark.parametrize("seed", range(4))
def test_combine_of_two_parts_is_the_whole(combine, seed):
    q, store, k, v = uniform(3, 2, 2, 16, 50, seed)
    cut = 17 * seed  # one part is empty, or nearly so
    parts = [
        reference.dense_attention(q, k[:, a:b], v[:, a:b], 0.25, causal=False)
        for a, b in ((0, cut), (cut, 50))
    ]
    o, lse = combine(parts)
    want, want_lse = attention(q, per_head(store), 0.25)
    assert_close("o", o, want, 1e-6)
    assert_lse_close("lse", lse, want_lse, 1e-5)


@BOTH
def test_combine_survives_logits_far_beyond_the_range_of_exp(combine):
    o = [torch.full((1, 1, 2), value) for value in (1.0, 3.0)]
    lse = torch.full((1, 1), 500.0)
    joined, total = combine([(o[0], lse), (o[1], lse)])
    # a float32 near 500 has steps of 3e-5, and so has a weight that is a difference of two
    assert_close("o", joined, torch.full((1, 1, 2), 2.0), 3e-5)
    assert_lse_close("lse", total, lse + torch.log(torch.tensor(2.0)), 1e-4)


@BOTH
def test_combine_of_empty_parts_is_empty(combine):
    nothing = (torch.zeros(2, 3, 4), torch.full((2, 3), float("-inf")))
    o, lse = combine([nothing, nothing])
    assert torch.equal(o, nothing[0])
    assert torch.equal(lse, nothing[1])
