"""The attention kernel against float64 and against its twin: ragged, biased, packed, causal
entries, several sets at once, padding full of NaN.
"""

from dataclasses import replace

import pytest
import torch

from kvchat.engine.cache.quantized import QuantizedSegment
from kvchat.engine.cache.segment import FlatSegment
from kvchat.kernels import reference
from kvchat.kernels.attention import ragged_attention, tiles
from kvchat.kernels.entries import Entries
from tests.kernels.naive import attention, per_head, random_entries
from tests.support.closeness import assert_close, assert_lse_close, relative_rms


def queries(tokens, heads, dim, dtype=torch.float32, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, heads, dim, generator=generator).to(dtype)


def moved(entries: Entries, device) -> Entries:
    tensors = {k: v.to(device) for k, v in vars(entries).items() if isinstance(v, torch.Tensor)}
    if entries.packing is not None:
        parts = {k: v.to(device) for k, v in vars(entries.packing).items() if k != "bits"}
        tensors["packing"] = replace(entries.packing, **parts)
    return replace(entries, **tensors)


def attended(q, parts, scale, device, causal=False):
    """On the device, back on the CPU."""
    o, lse = ragged_attention(q.to(device), [moved(p, device) for p in parts], scale, causal)
    return o.cpu(), lse.cpu()


def exact(q, parts, scale, causal=False):
    """Float64, all parts together."""
    last = len(parts) - 1
    answers = [
        attention(q, per_head(entries), scale, causal and number == last)
        for number, entries in enumerate(parts)
    ]
    return reference.combine(answers)


def assert_exact(q, parts, scale, device, causal=False):
    o, lse = attended(q, parts, scale, device, causal)
    want, want_lse = exact(q, parts, scale, causal)
    assert_close("o", o, want, 2e-6)
    assert_lse_close("lse", lse, want_lse, 1e-5)


@pytest.mark.parametrize("group", range(1, 17))
def test_every_group_with_an_empty_head_and_bias(group, device):
    entries = random_entries([63, 0, 5], 32, padding=5, bias=True)
    assert_exact(queries(1, 3 * group, 32), [entries], 0.2, device)


@pytest.mark.parametrize("dim", [16, 48, 80, 128, 256])
@pytest.mark.parametrize("tokens", [1, 7])
def test_every_head_size(dim, tokens, device):
    parts = [
        random_entries([100, 63], dim, padding=2),
        random_entries([20] * 2, dim, padding=3, seed=1),
    ]
    assert_exact(queries(tokens, 4, dim), parts, dim**-0.5, device, causal=True)


@pytest.mark.parametrize("tokens, group", [(1, 4), (5, 3)])
def test_a_long_head_is_split_and_short_ones_are_not(tokens, group, device):
    parts = [
        random_entries([2000, 63, 0, 100], 32, padding=3, bias=True),
        random_entries([0, 1, 0, 300], 32, seed=1),
        random_entries([tokens + 2] * 4, 32, padding=1, seed=2),
    ]
    assert_exact(queries(tokens, 4 * group, 32), parts, 0.2, device, causal=True)


@pytest.mark.parametrize("tokens, before", [(2, 0), (63, 0), (20, 43)])
def test_a_square_behind_a_rectangle(tokens, before, device):
    entries = random_entries([tokens + before] * 2, 16, padding=3)
    assert_exact(queries(tokens, 4, 16), [entries], 0.25, device, causal=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 17])
def test_half_precision_is_as_good_as_plain_torch_in_it(tokens, dtype, device):
    entries = random_entries([100, 63, 0, 300], 32, dtype, padding=4)
    q = queries(tokens, 16, 32, dtype)
    o, lse = attended(q, [entries], 0.125, device)
    want, want_lse = exact(q, [entries], 0.125)
    plain = torch.zeros_like(want)
    for head in range(16):
        k, v, _ = per_head(entries)[head // 4]
        weights = torch.softmax(q[:, head] @ k.T * 0.125, dim=-1)  # half precision throughout
        plain[:, head] = (weights @ v).double()
    assert relative_rms(o, want) <= 2 * relative_rms(plain, want)
    assert_lse_close("lse", lse.double(), want_lse, 2e-3)


@pytest.mark.parametrize("bits, dim", [(8, 64), (4, 64), (8, 80), (4, 80), (4, 256)])
@pytest.mark.parametrize("tokens", [1, 9])
def test_packed_rows_are_turned_back(bits, dim, tokens, device):
    lengths = [100, 0, 63, 32]
    flat = random_entries(lengths, dim, bias=True)
    segment = FlatSegment.of(flat.k, flat.v, lengths, torch.arange(195), (0, 100), flat.bias)
    parts = [
        *QuantizedSegment.of(segment, bits).parts,
        random_entries([tokens + 3] * 4, dim, seed=2),
    ]
    q = queries(tokens, 8, dim)
    want = reference.ragged_attention(q, parts, dim**-0.5, causal=True)
    o, lse = attended(q, parts, dim**-0.5, device, causal=True)
    assert_close("o", o, want[0], 2e-6)
    assert_lse_close("lse", lse, want[1], 1e-5)


def test_lengths_are_read_on_the_device(device):
    """A captured launch is made for the entries that may come: its spans are bounds."""
    entries = random_entries([40, 300, 0], 16, padding=400)
    bounds = tuple((a, 400) for a, _ in entries.spans)
    q = queries(2, 6, 16)
    o, lse = attended(q, [replace(entries, spans=bounds)], 0.25, device)
    want, want_lse = exact(q, [entries], 0.25)
    assert_close("o", o, want, 2e-6)
    assert_lse_close("lse", lse, want_lse, 1e-5)


@pytest.mark.parametrize("lengths", [[0, 0], [1, 1]])
def test_nothing_to_see_and_next_to_nothing(lengths, device):
    assert_exact(queries(3, 4, 16), [random_entries(lengths, 16, padding=2)], 0.25, device)


@pytest.mark.parametrize("tokens", [1, 3])
def test_keys_and_values_may_lie_side_by_side(tokens, device):
    entries = random_entries([40, 40], 16, padding=2)
    both = torch.cat((entries.k, entries.v), dim=1)
    beside = replace(entries, k=both[:, :16], v=both[:, 16:])
    q = queries(tokens, 4, 16)
    o, lse = attended(q, [beside, moved(beside, device)], 0.25, device, causal=True)
    want, want_lse = exact(q, [entries, entries], 0.25, causal=True)
    assert_close("o", o, want, 2e-6)
    assert_lse_close("lse", lse, want_lse, 1e-5)


def test_queries_need_not_be_contiguous_over_heads(device):
    entries = random_entries([50, 20], 16)
    wide = queries(4, 10, 16)[:, 3:7]
    assert_exact(wide, [entries], 0.25, device)


@pytest.mark.parametrize("seed", range(4))
def test_random_shapes(seed, device):
    pick = torch.Generator().manual_seed(seed)

    def number(low, high):
        return int(torch.randint(low, high, (1,), generator=pick))

    heads, group, dim, tokens = number(1, 6), number(1, 9), 16 * number(1, 5), number(1, 12)
    lengths = [number(0, 300) * number(0, 2) for _ in range(heads)]
    parts = [
        random_entries(lengths, dim, padding=number(0, 4), bias=seed % 2 == 0, seed=seed),
        random_entries([tokens + number(0, 20)] * heads, dim, padding=number(0, 4), seed=seed + 1),
    ]
    assert_exact(queries(tokens, heads * group, dim), parts, dim**-0.5, device, causal=True)


def test_blocks_are_powers_of_two_and_fill_a_product():
    for queries_ in (1, 16, 17, 64, 65, 4096):
        for dim in (16, 80, 128, 256):
            for itemsize in (2, 4):
                block = tiles(queries_, dim, itemsize)
                assert block.m in (16, 32, 64, 128) and block.n in (16, 32, 64, 128)


def test_a_mistake_is_named(device):
    entries = moved(random_entries([5, 5], 16), device)
    with pytest.raises(AssertionError, match="int32"):
        ragged_attention(
            queries(1, 2, 16).to(device), [replace(entries, start=entries.start.long())], 1.0
        )
    with pytest.raises(AssertionError, match="float16"):
        ragged_attention(queries(1, 2, 16).half().to(device), [entries], 1.0)
