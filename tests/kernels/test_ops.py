"""The operations that are not attention, against formulas and against their reference twins; the
scoring oracle S of the Ada-KV specification among them."""

import math

import pytest
import torch

from kvchat.engine import ops
from kvchat.kernels import reference
from tests.support.closeness import assert_close

# Oracle S: D 2, T 6, W 2. Keys are sqrt(2)·(ln a, ln b), query 4 is (1, 0), query 5 is (0, 1).
A = [[1.0, 2, 4, 1, 2, 7], [14.0, 1, 1, 2, 2, 9]]
B = [[3.0, 1, 1, 1, 2, 2], [28.0, 1, 3, 2, 4, 2]]
MEAN = [[0.20, 0.15, 0.25, 0.10], [0.70, 0.0375, 0.0625, 0.075]]
SCALE = 2**-0.5


def keys(a=A, b=B):
    return math.sqrt(2) * torch.stack((torch.tensor(a).log(), torch.tensor(b).log()), dim=-1)


def mass(q, k, entries=4):
    """Mean column_mass of the last two queries, with the lse of their exact attention."""
    _, lse = reference.dense_attention(q, k, k, SCALE, causal=True)
    return ops.column_mass(q, k[:, :entries], lse, torch.tensor([5, 6]), SCALE) / 2


def window(heads):
    """Both queries, for each query head: `[2, heads, 2]`."""
    return torch.eye(2)[:, None].expand(2, heads, 2).contiguous()


def test_column_mass_of_the_oracle():
    assert_close("mass", mass(window(2), keys()), torch.tensor(MEAN), 1e-6)


def test_a_key_after_the_query_counts_for_nothing():
    a = [[*A[0][:5], 1000.0], [*A[1][:5], 1000.0]]
    assert_close("mass", mass(window(2), keys(a)), torch.tensor(MEAN), 1e-6)


def test_the_window_s_own_rows_are_causal_too():
    got = mass(window(2), keys(), entries=6)
    assert_close("query 5 alone sees key 5", got[:, 5], torch.tensor([0.10, 0.025]), 1e-6)


def test_column_mass_of_grouped_queries():
    q = window(2).clone()
    q[:, 1] = q[:, 1].flip(0)
    got = mass(q, keys()[:1])
    mean = torch.tensor([0.2085, 0.1357, 0.2151, 0.0960])
    best = torch.tensor([0.2169, 0.15, 0.25, 0.10])
    assert float((got.mean(dim=0) - mean).abs().max()) < 6e-5
    assert float((got.max(dim=0).values - best).abs().max()) < 6e-5


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("values", [1, 24, 100, 2**22])
def test_column_mass_in_slices_is_the_same(monkeypatch, values, power):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(3, 8, 16, generator=generator), torch.randn(2, 63, 16, generator=generator)
    _, lse = reference.dense_attention(q, k, k, 0.25, causal=True)
    seen = torch.tensor([61, 62, 63])
    want = reference.column_mass(q, k, lse, seen, 0.25, power)
    monkeypatch.setattr(ops, "MASS_VALUES", values)
    assert_close("mass", ops.column_mass(q, k, lse, seen, 0.25, power), want, 1e-6)
    if power == 1:
        assert_close("all of it", want.sum(dim=1), torch.full((8,), 3.0), 1e-6)


@pytest.mark.parametrize("group, dim, power", [(1, 16, 1), (2, 32, 2), (4, 80, 1), (8, 128, 2)])
def test_column_mass_of_all_queries_is_the_materialised_column_sum(group, dim, power):
    """All causal queries together give T in all per query head."""
    generator = torch.Generator().manual_seed(group)
    tokens, scale = 77, dim**-0.5
    q = torch.randn(tokens, 2 * group, dim, generator=generator)
    k = torch.randn(2, tokens, dim, generator=generator)
    _, lse = reference.dense_attention(q, k, k, scale, causal=True)
    logits = torch.einsum("thd,hnd->htn", q, k.repeat_interleave(group, 0)) * scale
    hidden = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    want = logits.masked_fill(hidden, float("-inf")).softmax(-1).pow(power).sum(1)
    got = ops.column_mass(q, k, lse, torch.arange(1, tokens + 1), scale, power)
    assert_close("column sums", got, want, 1e-5)
    if power == 1:
        assert_close("in all", got.sum(1), torch.full((2 * group,), float(tokens)), 1e-5)


def test_rms_norm_is_its_formula_and_its_twin():
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    weight = torch.linspace(0.5, 2, 48)
    want = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    assert_close("ops", ops.rms_norm(x, weight, 1e-5), want, 1e-6)
    assert_close("twin", reference.rms_norm(x, weight, 1e-5), want, 1e-6)
    half = x.bfloat16()
    assert ops.rms_norm(half, weight.bfloat16(), 1e-5).dtype == torch.bfloat16
    assert_close(
        "bf16",
        ops.rms_norm(half, weight.bfloat16(), 1e-5),
        reference.rms_norm(half, weight.bfloat16(), 1e-5),
        8e-3,
    )


def test_rope_turns_each_pair_by_its_angle():
    x = torch.randn(7, 3, 16, generator=torch.Generator().manual_seed(0))
    phase = torch.rand(7, 8, generator=torch.Generator().manual_seed(1)) * 6
    got = ops.rope(x, phase.cos(), phase.sin())
    pairs = torch.complex(x[..., :8].double(), x[..., 8:].double())
    turned = pairs * torch.exp(1j * phase.double())[:, None]
    assert_close("rope", got, torch.cat((turned.real, turned.imag), dim=-1), 1e-6)


def test_swiglu_is_its_formula():
    gate, up = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0)).unbind()
    want = gate.double() / (1 + torch.exp(-gate.double())) * up
    assert_close("swiglu", ops.swiglu(gate, up), want, 1e-6)
