"""Every way of attending, against float64: ragged, biased, packed and causal entries, padding full
of NaN. The twin, torch's fused kernels, the plain path, and the Triton kernel."""

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from kvchat.engine.attention import torch_backend
from kvchat.engine.attention.entries import dense
from kvchat.engine.attention.torch_backend import TorchBackend
from kvchat.engine.cache.quantized import QuantizedSegment
from kvchat.engine.cache.segment import FlatSegment
from kvchat.kernels import reference
from kvchat.kernels.attention import ragged_attention, tiles
from kvchat.kernels.entries import Entries
from tests.kernels.naive import attention, per_head, random_entries
from tests.support.closeness import assert_attention, assert_lse_close, relative_rms

LENGTHS = {
    "ragged with an empty head": [63, 0, 1, 100],
    "ragged": [63, 1, 100],
    "equal": [63, 63],
    "one head": [100],
    "single entries": [1, 1, 1],
    "all empty": [0, 0],
}
SQUARES = [(2, 1, 64, 1), (2, 2, 16, 63), (1, 8, 32, 40), (2, 4, 128, 2)]


def queries(tokens, heads, dim, dtype=torch.float32, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, heads, dim, generator=generator).to(dtype)


def moved(entries: Entries, device) -> Entries:
    tensors = {k: v.to(device) for k, v in vars(entries).items() if isinstance(v, torch.Tensor)}
    if entries.packing is not None:
        parts = {k: v.to(device) for k, v in vars(entries.packing).items() if k != "bits"}
        tensors["packing"] = replace(entries.packing, **parts)
    return replace(entries, **tensors)


def exact(q, parts, scale, causal=False):
    """Float64, all parts together."""
    last = len(parts) - 1
    answers = [
        attention(q, per_head(entries), scale, causal and number == last)
        for number, entries in enumerate(parts)
    ]
    return reference.combine(answers)


def by_triton(q, parts, scale, causal=False, device="cpu"):
    o, lse = ragged_attention(q.to(device), [moved(p, device) for p in parts], scale, causal)
    return o.cpu(), lse.cpu()


def one_by_one(way):
    """A backend that takes entries of one set, and squares."""

    def attend(q, parts, scale, causal=False):
        if not causal:
            return reference.combine([way.attend(q, part, scale) for part in parts])
        *whole, last = parts
        spans, tokens = last.spans, len(q)
        k, v = (dense(store, spans)[:, -tokens:] for store in (last.k, last.v))
        answers = [way.causal(q, k, v, scale)]
        if spans[0][1] > tokens:
            before = tuple((a, n - tokens) for a, n in spans)
            answers.append(way.attend(q, replace(last, spans=before), scale))
        return reference.combine([*answers, *(way.attend(q, part, scale) for part in whole)])

    return attend


PLAIN = SimpleNamespace(attend=torch_backend.plain_attend, causal=torch_backend.plain_causal)
WAYS = {
    "twin": reference.ragged_attention,
    "torch": one_by_one(TorchBackend()),
    "plain": one_by_one(PLAIN),
    "triton": by_triton,
}


CARD = pytest.param("card", marks=pytest.mark.gpu)


@pytest.fixture(params=["twin", "torch", "plain", "triton", CARD])
def way(request, monkeypatch):
    """A few queries and heads at once on the plain path."""
    import tests.kernels.interpreted  # noqa: F401 - bfloat16 as a card has it

    monkeypatch.setattr(torch_backend, "PLAIN_VALUES", 700)
    if request.param == "card":
        return lambda *given, **how: by_triton(*given, **how, device="cuda")
    return WAYS[request.param]


def assert_exact(way, q, parts, scale, causal=False):
    assert_attention(way(q, parts, scale, causal=causal), exact(q, parts, scale, causal), 2e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens, group", [(1, 4), (7, 2)])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_every_entry_is_seen_and_nothing_between(way, lengths, tokens, group, bias):
    entries = random_entries(lengths, dim=16, padding=5, bias=bias)
    assert_exact(way, queries(tokens, len(lengths) * group, 16), [entries], 0.25)


@pytest.mark.parametrize("group", [1, 2, 3, 5, 7, 8, 9, 12, 15, 16])
def test_groups_of_odd_sizes_with_an_empty_head_and_bias(way, group):
    entries = random_entries([63, 0, 5], 32, padding=5, bias=True)
    assert_exact(way, queries(1, 3 * group, 32), [entries], 0.2)


@pytest.mark.parametrize("dim", [16, 48, 80, 128, 256])
@pytest.mark.parametrize("tokens", [1, 7])
def test_every_head_size(way, dim, tokens):
    lengths = [100, 63], [20] * 2
    parts = [random_entries(n, dim, padding=2 + i, seed=i) for i, n in enumerate(lengths)]
    assert_exact(way, queries(tokens, 4, dim), parts, dim**-0.5, causal=True)


@pytest.mark.parametrize("heads, group, dim, tokens", SQUARES)
@pytest.mark.parametrize("before", [0, 43])
def test_a_square_behind_a_rectangle(way, heads, group, dim, tokens, before):
    entries = random_entries([tokens + before] * heads, dim, padding=3)
    assert_exact(way, queries(tokens, heads * group, dim), [entries], dim**-0.5, causal=True)


@pytest.mark.parametrize("tokens, group", [(1, 4), (5, 3)])
def test_a_long_head_is_split_and_short_ones_are_not(monkeypatch, way, tokens, group):
    """In a piece per thread (entries that divide, and that leave a rest), or among programs."""
    monkeypatch.setattr(torch_backend, "PIECE", 16 * 20)
    monkeypatch.setattr(torch, "get_num_threads", lambda: tokens + 1)
    parts = [
        random_entries([700, 63, 0, 101], 32, padding=3, bias=True),
        random_entries([0, 1, 0, 300], 32, seed=1),
        random_entries([tokens + 2] * 4, 32, padding=1, seed=2),
    ]
    assert_exact(way, queries(tokens, 4 * group, 32), parts, 0.2, causal=True)


@pytest.mark.parametrize("seed", range(4))
def test_random_shapes(way, seed):
    pick = torch.Generator().manual_seed(seed)

    def number(low, high):
        return int(torch.randint(low, high, (1,), generator=pick))

    heads, group, dim, tokens = number(1, 6), number(1, 9), 16 * number(1, 5), number(1, 12)
    lengths = [number(0, 160) * number(0, 2) for _ in range(heads)]
    parts = [
        random_entries(lengths, dim, padding=number(0, 4), bias=seed % 2 == 0, seed=seed),
        random_entries([tokens + number(0, 20)] * heads, dim, padding=number(0, 4), seed=seed + 1),
    ]
    assert_exact(way, queries(tokens, heads * group, dim), parts, dim**-0.5, causal=True)


@pytest.mark.parametrize(
    "tokens, lengths", [(1, [100, 63, 0, 300]), (17, [100, 63, 0, 300]), (17, [63] * 4), (63, None)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_good_as_plain_torch_in_it(way, tokens, dtype, lengths):
    """Without `lengths` a causal square."""
    entries = random_entries(lengths or [tokens] * 4, 32, dtype, padding=4 if lengths else 0)
    q, causal = queries(tokens, 16 if lengths else 8, 32, dtype), lengths is None
    o, lse = way(q, [entries], 0.125, causal=causal)
    want, want_lse = exact(q, [entries], 0.125, causal)
    naive = torch.zeros_like(want)
    for head in range(q.shape[1]):
        k, v, _ = per_head(entries)[head // (q.shape[1] // 4)]
        logits = q[:, head] @ k.T * 0.125
        if causal:
            logits = logits.masked_fill(torch.ones_like(logits).bool().triu(1), float("-inf"))
        naive[:, head] = (logits.softmax(-1) @ v).double()  # half precision throughout
    assert relative_rms(o, want) <= 2 * relative_rms(naive, want)
    assert_lse_close("lse", lse.double(), want_lse, 2e-3)


@pytest.mark.parametrize("lengths", [[100, 63, 0, 1], [63, 40], [63, 63]])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_bias_stays_fp32_whatever_entries_are_stored_in(way, lengths, dtype):
    """Rounded to bf16, a bias of about 3 moves the log-sum-exp by 0.01."""
    entries = random_entries(lengths, 64, dtype, padding=4, bias=True)
    entries = replace(entries, bias=entries.bias * 3)
    q = queries(5, 2 * len(lengths), 64, dtype)
    o, lse = way(q, [entries], 0.125)
    want, want_lse = exact(q, [entries], 0.125)
    assert relative_rms(o, want) < 4e-3
    assert_lse_close("lse", lse.double(), want_lse, 2e-4)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["torch", "plain", "triton"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_lengths_that_the_host_does_not_know(lengths, name, bias):
    """A captured launch is made for the entries that may come; up to its bounds there is NaN."""
    entries = random_entries(lengths, dim=16, padding=5, bias=bias)
    q = queries(2, len(lengths) * 2, 16)
    bounds = tuple((a, n + 5) for a, n in entries.spans)
    assert_attention(
        WAYS[name](q, [replace(entries, spans=bounds, bounds=True)], 0.25),
        exact(q, [entries], 0.25),
        2e-6,
    )


PACKED = [(8, 64), (4, 64), (2, 64), (8, 80), (4, 80), (2, 80), (4, 256)]


@pytest.mark.parametrize("bits, dim", PACKED)
@pytest.mark.parametrize("tokens", [1, 9])
def test_packed_entries_are_turned_back(bits, dim, tokens, device):
    lengths, scale = [100, 0, 63, 32], dim**-0.5
    flat = random_entries(lengths, dim, bias=True)
    segment = FlatSegment.of(flat.k, flat.v, lengths, torch.arange(195), (0, 100), flat.bias)
    late = random_entries([tokens + 3] * 4, dim, seed=2)
    q, parts = queries(tokens, 8, dim), [*QuantizedSegment.of(segment, bits).parts, late]
    want = reference.ragged_attention(q, parts, scale, causal=True)
    assert_attention(by_triton(q, parts, scale, True, device), want, 2e-6)


@pytest.mark.parametrize("tokens", [1, 3])
def test_keys_and_values_may_lie_side_by_side(tokens, device):
    entries = random_entries([40, 40], 16, padding=2)
    both = torch.cat((entries.k, entries.v), dim=1)
    beside = replace(entries, k=both[:, :16], v=both[:, 16:])
    q = queries(tokens, 4, 16)
    assert_attention(
        by_triton(q, [beside, beside], 0.25, True, device),
        exact(q, [entries, entries], 0.25, causal=True),
        2e-6,
    )


def test_queries_need_not_be_contiguous_over_heads(way):
    entries = random_entries([50, 20], 16)
    assert_exact(way, queries(4, 10, 16)[:, 3:7], [entries], 0.25)


@pytest.mark.parametrize("causal", [False, True])
def test_a_query_before_the_first_entry_sees_nothing(causal):
    entries = random_entries([3] * 2, 16)
    q = queries(5, 4, 16)
    k, v = entries.k.view(2, 3, 16), entries.v.view(2, 3, 16)
    got = reference.dense_attention(q, k, v, 0.25, causal=causal)
    assert got[0][:2].any() != causal
    assert_attention(got, exact(q, [entries], 0.25, causal), 1e-6)


def test_blocks_are_powers_of_two_and_fill_a_product():
    for given in product((1, 16, 17, 64, 65, 4096), (16, 80, 128, 256), (2, 4)):
        block = tiles(*given)
        assert {block.m, block.n} <= {16, 32, 64, 128}


def test_a_mistake_is_named(device):
    entries, q = moved(random_entries([5, 5], 16), device), queries(1, 2, 16).to(device)
    wrong = replace(entries, start=entries.start.long())
    for given, named in (((q, [wrong]), "int32"), ((q.half(), [entries]), "float16")):
        with pytest.raises(AssertionError, match=named):
            ragged_attention(*given, 1.0)
