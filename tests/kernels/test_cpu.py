"""Kernels for CPUs against their twins in torch: odd sizes, ragged heads, all dtypes."""

import numpy as np
import pytest
import torch

from kvchat.engine.weights import lowbit
from kvchat.kernels import reference
from kvchat.kernels.cpu import attention, four_bits, layer, numbers, products, quads
from tests.support.closeness import assert_close

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def made(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_are_read_and_written_as_torch_does(dtype):
    @numbers.jit()
    def copied(given, out):
        for i in range(given.size):
            out[i] = numbers.down(numbers.up(given[i]) * np.float32(1.2345), out[i])

    x = made(500, dtype=dtype)
    x[:4] = torch.tensor([0.0, -0.0, 1e-6, 300.0])
    out = torch.empty_like(x)
    copied(numbers.view(x), numbers.view(out))
    assert torch.equal(out, (x.float() * np.float32(1.2345)).to(dtype))


def test_exponential_tanh_and_maximum():
    @numbers.jit()
    def computed(x, e, t):
        for i in range(x.size):
            e[i], t[i] = numbers.exp(x[i]), numbers.tanh(x[i])
        return numbers.largest(x, x.size)

    x = torch.cat((torch.linspace(-86, 20, 4001), torch.linspace(-1, 1, 2001)))
    e, t = torch.empty_like(x), torch.empty_like(x)
    assert computed(x.numpy(), e.numpy(), t.numpy()) == 20
    torch.testing.assert_close(e, x.exp(), rtol=5e-6, atol=0)  # 1e-7 near 0
    torch.testing.assert_close(t, x.tanh(), rtol=2e-6, atol=1e-7)
    assert computed(-x[x > 0].numpy(), e.numpy(), t.numpy()) == -x[x > 0].min()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 4, 6])
@pytest.mark.parametrize("outputs, inputs", [(1, 1), (3, 7), (65, 130), (200, 64), (37, 2100)])
def test_products_of_plain_numbers(dtype, rows, outputs, inputs):
    a, b = made(outputs, inputs, dtype=dtype), made(outputs + 1, inputs, dtype=dtype, seed=1)
    x, y, both = made(rows, inputs), made(rows, outputs + 2), torch.empty(rows, 2 * outputs + 1)
    before = y.clone()
    for call in (products.gemm, products.gemm_parallel):
        call(numbers.view(a), x.numpy(), y.numpy(), 1)
        assert_close("y", y[:, 1:-1], x @ a.float().T, 1e-6)
        assert torch.equal(y[:, [0, -1]], before[:, [0, -1]]), "nothing else is written"
    arrays = [numbers.view(each) for each in (a, b, a[:0])]
    products.gemm_joined(*arrays, x.numpy(), both.numpy(), 0)
    assert_close("both", both, x @ torch.cat((a, b)).float().T, 1e-6)


@pytest.mark.parametrize("rows", [1, 5])
def test_products_of_8_bits(rows):
    codes, scale = lowbit.quantize_rows(made(37, 64))
    x, y = made(rows, 64), torch.empty(rows, 37)
    want = x @ (codes.float() * scale.float()[:, None]).T
    for call in (products.gemm_rows, products.gemm_rows_parallel):
        call(codes.numpy(), numbers.view(scale), x.numpy(), y.numpy(), 0)
        assert_close("y", y, want, 1e-6)


@pytest.mark.skipif(
    not (four_bits.able() and lowbit.halves_of(64)), reason="needs AVX-512 and its packing"
)
@pytest.mark.parametrize("kernels", [four_bits, quads], ids=["words", "quads"])
@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize("outputs, inputs, group", [(64, 32, 32), (192, 256, 64), (128, 384, 128)])
def test_products_of_4_bits(kernels, rows, outputs, inputs, group):
    """Exactly the weights' product with the vectors rounded to 8 bits, group by group."""
    if not kernels.able():
        pytest.skip("another processor's")
    packed, scales = lowbit.quantize_groups(made(outputs, inputs), group)
    parts = lowbit.numbers(packed, scales, group, torch.float32)
    dense = torch.cat([part.t() for part in parts])
    x, y = made(rows, inputs, seed=1), torch.zeros(rows, outputs + 64)
    x[:, 32:64] = 0 if inputs > 32 else x[:, 32:64]
    parted = x.view(rows, -1, 32)
    step = parted.abs().amax(2, keepdim=True) / 127
    codes = torch.where(step > 0, (parted / step.clamp_min(1e-30)).round(), 0.0)
    want = (codes * step).flatten(1) @ dense.T
    room = kernels.room(rows, inputs)
    kernels.rounded(x.numpy(), *room)
    given = packed.numpy().reshape(outputs // 64, inputs, 32)
    pairs = numbers.view(scales).view(np.uint32).reshape(inputs // group, outputs)
    for call in (kernels.product, kernels.product_parallel):
        call(given, pairs, *room, y.numpy(), 64)
        assert_close("y", y[:, 64:], want, 1e-5)
        assert not y[:, :64].any()


SETS = ([5, 0, 300], [0, 0, 0], [1, 1024, 1025], [2100, 3, 64])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("splits, cap", [(1, 0.0), (3, 0.0), (2, 4.0)])
def test_attention_over_ragged_sets(dtype, group, splits, cap):
    """Sets one after the other, some heads empty, one with a bias: as softmax over all of them."""
    heads, dim = 3, 40
    q = made(heads * group, dim, seed=3)
    width, wide = attention.together(group), attention.padded(group)
    room = np.full((heads * splits, wide, dim), np.nan, np.float32)
    top, total = np.full((2, heads * splits, wide), np.nan, np.float32)
    asked, logits = room.copy(), np.empty((heads * splits, wide, attention.BLOCK), np.float32)
    out, lse = torch.empty(heads * group, dim), torch.empty(heads * group)
    parts = []
    for number, lengths in enumerate(SETS):
        k, v = (made(sum(lengths) + 9, dim, dtype=dtype, seed=10 * number + n) for n in (0, 1))
        bias = made(len(k), seed=5) if number == 0 else torch.empty(0)
        start = np.cumsum([4, *lengths[:-1]])
        call = attention.attend_parallel if splits > 1 else attention.attend
        call(
            q.numpy(), numbers.view(k), numbers.view(v), start, np.array(lengths), bias.numpy(),
            np.float32(0.2), np.float32(cap), width, splits, number == 0, number == len(SETS) - 1,
            room, top, total, asked, logits, out.numpy(), lse.numpy(),
        )  # fmt: skip
        parts.append((k.float(), v.float(), start, lengths, bias))
    for head in range(heads):
        own = q[head * group : (head + 1) * group]
        scores, values = [], []
        for k, v, start, lengths, bias in parts:
            part = slice(int(start[head]), int(start[head]) + lengths[head])
            found = reference.capped(own @ k[part].T * 0.2, cap)
            scores.append(found + bias[part] if len(bias) else found)
            values.append(v[part])
        every = torch.cat(scores, 1)
        rows = slice(head * group, (head + 1) * group)
        assert_close("o", out[rows], every.softmax(1) @ torch.cat(values), 1e-5)
        assert_close("lse", lse[rows], every.logsumexp(1), 1e-5)


def test_attention_over_nothing_and_what_was_attended_to_elsewhere():
    group, dim, none = 2, 8, np.empty(0, np.float32)
    room, asked = np.empty((2, 1, 2, dim), np.float32)
    top, total = np.empty((2, 1, 2), np.float32)
    logits = np.empty((1, 2, attention.BLOCK), np.float32)
    out, lse = torch.empty(group, dim), torch.empty(group)
    q, k, v = made(group, dim), made(6, dim, seed=1), made(6, dim, seed=2)
    for count in (0, 6):
        attention.attend(
            q.numpy(), k.numpy(), v.numpy(), np.array([0]), np.array([count]), none,
            np.float32(1), np.float32(0), 2, 1, True, True, room, top, total, asked, logits,
            out.numpy(), lse.numpy(),
        )  # fmt: skip
        if count == 0:
            assert float(out.abs().max()) == 0 and bool(torch.isneginf(lse).all())
    other, their = made(group, dim, seed=4), torch.tensor([0.5, -torch.inf])
    alone, its = out.clone(), lse.clone()
    attention.include(
        room, top, total, 1, True, other.numpy(), their.numpy(), out.numpy(), lse.numpy()
    )
    want, want_lse = reference.combine([(alone[None], its[None]), (other[None], their[None])])
    assert_close("o", out, want[0], 1e-5)
    assert_close("lse", lse, want_lse[0], 1e-5)


@pytest.mark.parametrize("gelu", [False, True])
def test_the_gate(gelu):
    both, biases = made(2 * 33), (made(33, seed=1), made(33, seed=2))
    gate, up = both[:33] + biases[0], both[33:] + biases[1]
    want = (reference.geglu if gelu else reference.swiglu)(gate, up)
    got = torch.empty(33)
    layer.gate(both.numpy(), *(each.numpy() for each in biases), gelu, got.numpy())
    assert_close("gate", got, want, 1e-5)
