"""The torch backend against the float64 oracle: ragged and dense entries, padding full of NaN."""

from dataclasses import replace

import pytest
import torch

from kvchat.engine.attention import plain, torch_backend
from kvchat.engine.attention.torch_backend import TorchBackend
from kvchat.kernels import reference
from tests.kernels.naive import attention, per_head, random_entries
from tests.support.closeness import assert_close, assert_lse_close, relative_rms

BACKEND = TorchBackend()
LENGTHS = {
    "ragged with an empty head": [63, 0, 1, 100],
    "ragged": [63, 1, 100],
    "equal": [63, 63],
    "one head": [100],
    "single entries": [1, 1, 1],
    "all empty": [0, 0],
}


def queries(tokens, heads, dim, dtype=torch.float32, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, heads, dim, generator=generator).to(dtype)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_attend_is_exact_and_reads_nothing_between(
    monkeypatch, lengths, group, tokens, bias, padded
):
    monkeypatch.setattr(torch_backend, "PADDED", 2**17 if padded else 0)
    entries = random_entries(lengths, dim=16, padding=5, bias=bias)
    q = queries(tokens, len(lengths) * group, 16)
    o, lse = BACKEND.attend(q, entries, 0.25)
    want, want_lse = attention(q, per_head(entries), 0.25)
    assert_close("o", o, want, 2e-6)
    assert_lse_close("lse", lse, want_lse, 1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("threads", [2, 3])
def test_a_long_head_is_cut_into_a_piece_per_thread(monkeypatch, threads, bias):
    """Entry counts that divide, and that leave a rest; a head too short to be cut."""
    monkeypatch.setattr(torch_backend, "PADDED", 0)
    monkeypatch.setattr(torch_backend, "PIECE", 16 * 20)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    entries = random_entries([120, 101, 0, 13], dim=16, padding=5, bias=bias)
    q = queries(2, 8, 16)
    o, lse = BACKEND.attend(q, entries, 0.25)
    want, want_lse = attention(q, per_head(entries), 0.25)
    assert_close("o", o, want, 2e-6)
    assert_lse_close("lse", lse, want_lse, 1e-5)


@pytest.mark.parametrize("dim", [16, 48, 64, 80, 128])
def test_attend_takes_every_head_size(dim):
    for lengths in ([100, 63], [63, 63]):
        entries = random_entries(lengths, dim, padding=2)
        q = queries(3, 4, dim)
        o, _ = BACKEND.attend(q, entries, dim**-0.5)
        assert_close("o", o, attention(q, per_head(entries), dim**-0.5)[0], 2e-6)


@pytest.mark.parametrize("tokens", [1, 2, 63, 100])
@pytest.mark.parametrize("heads, group, dim", [(2, 1, 64), (2, 2, 16), (1, 8, 32), (2, 4, 128)])
def test_causal_square_is_exact(heads, group, dim, tokens):
    entries = random_entries([tokens] * heads, dim)
    capacity = random_entries(
        [tokens] * heads, dim, padding=9
    )  # the same entries, inside a larger store
    q = queries(tokens, heads * group, dim)
    want, want_lse = attention(q, per_head(entries), dim**-0.5, causal=True)
    step = tokens + 9
    for k, v in (
        (entries.k.view(heads, tokens, dim), entries.v.view(heads, tokens, dim)),
        tuple(store[9:].view(heads, step, dim)[:, :tokens] for store in (capacity.k, capacity.v)),
    ):
        o, lse = BACKEND.causal(q, k, v, dim**-0.5)
        assert_close("o", o, want, 2e-6)
        assert_lse_close("lse", lse, want_lse, 1e-5)


@pytest.mark.parametrize("lengths", [[100, 63, 0, 1], [63, 40], [63, 63]])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_bias_stays_fp32_whatever_entries_are_stored_in(lengths, dtype):
    """Rounded to bf16, a bias of about 3 moves the log-sum-exp by 0.01."""
    entries = random_entries(lengths, 64, dtype, padding=4, bias=True)
    entries = replace(entries, bias=entries.bias * 3)
    q = queries(5, 2 * len(lengths), 64, dtype)
    o, lse = BACKEND.attend(q, entries, 0.125)
    want, want_lse = attention(q, per_head(entries), 0.125)
    assert relative_rms(o, want) < 4e-3
    assert_lse_close("lse", lse.double(), want_lse, 2e-4)


@pytest.mark.parametrize("lengths", [[100, 63, 0, 1], [63, 63, 63, 63]])
@pytest.mark.parametrize("tokens", [1, 7])
def test_bf16_is_as_good_as_plain_torch_in_bf16(lengths, tokens):
    entries = random_entries(lengths, 64, torch.bfloat16, padding=4)
    q = queries(tokens, 16, 64, torch.bfloat16)
    o, lse = BACKEND.attend(q, entries, 0.125)
    want, want_lse = attention(q, per_head(entries), 0.125)
    naive = torch.zeros_like(want)
    for head in range(16):
        k, v, _ = per_head(entries)[head // 4]
        weights = torch.softmax(q[:, head] @ k.T * 0.125, dim=-1)  # bf16 throughout
        naive[:, head] = (weights @ v).double()
    assert relative_rms(o, want) <= 2 * relative_rms(naive, want)
    assert_lse_close("lse", lse.double(), want_lse, 2e-2)


def test_bf16_causal_is_as_good_as_plain_torch_in_bf16():
    entries = random_entries([63] * 2, 32, torch.bfloat16)
    q = queries(63, 4, 32, torch.bfloat16)
    k, v = entries.k.view(2, 63, 32), entries.v.view(2, 63, 32)
    o, _ = BACKEND.causal(q, k, v, 0.2)
    want, _ = attention(q, per_head(entries), 0.2, causal=True)
    hidden = torch.ones(63, 63, dtype=torch.bool).triu(1)
    logits = torch.einsum("thd,hnd->htn", q, k.repeat_interleave(2, 0)) * 0.2
    weights = torch.softmax(logits.masked_fill(hidden, float("-inf")), dim=-1)
    naive = torch.einsum("htn,hnd->thd", weights, v.repeat_interleave(2, 0))
    assert relative_rms(o, want) <= 2 * relative_rms(naive, want)


def test_attend_equals_the_reference_twin():
    entries = random_entries([63, 0, 100], dim=32, padding=1, bias=True)
    q = queries(6, 6, 32)
    o, lse = BACKEND.attend(q, entries, 0.3)
    twin = reference.ragged_attention(q, [entries], 0.3)
    assert_close("o", o, twin[0], 2e-6)
    assert_lse_close("lse", lse, twin[1], 1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_plain_attention_is_exact_with_lengths_and_with_bounds(monkeypatch, lengths, tokens, bias):
    """What a device does that has no fused kernel; it learns lengths that the host does not know.

    Between the entries that live and their bound there is NaN.
    """
    monkeypatch.setattr(plain, "QUERIES", 4)
    entries = random_entries(lengths, dim=16, padding=5, bias=bias)
    q = queries(tokens, len(lengths) * 2, 16)
    want, want_lse = attention(q, per_head(entries), 0.25)
    bounds = tuple((a, n + 5) for a, n in entries.spans)
    ahead = replace(entries, spans=bounds, bounds=True)
    for o, lse in (plain.attend(q, entries, 0.25), BACKEND.attend(q, ahead, 0.25)):
        assert_close("o", o, want, 2e-6)
        assert_lse_close("lse", lse, want_lse, 1e-5)


def test_plain_squares_are_exact(monkeypatch):
    monkeypatch.setattr(plain, "QUERIES", 10)
    entries = random_entries([23] * 2, 16)
    q = queries(23, 4, 16)
    o, lse = plain.causal(q, entries.k.view(2, 23, 16), entries.v.view(2, 23, 16), 0.25)
    want, want_lse = attention(q, per_head(entries), 0.25, causal=True)
    assert_close("o", o, want, 2e-6)
    assert_lse_close("lse", lse, want_lse, 1e-5)
