"""Which backend answers, what the others say, and the contract with flash-attn (a stand-in: the
package itself has never run here)."""

import sys
from importlib import import_module
from types import ModuleType

import pytest
import torch

from kvchat.engine import attention
from kvchat.engine.attention import BACKENDS
from kvchat.engine.attention.choice import Choice, choose
from kvchat.engine.attention.entries import Call, dense
from kvchat.engine.attention.torch_backend import TorchBackend
from kvchat.engine.attention.triton_backend import TritonBackend
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.cache.quantized import QuantizedSegment
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.cache.tail import Tail
from kvchat.errors import KvchatError
from kvchat.kernels import reference
from tests.kernels.naive import random_entries
from tests.support.closeness import assert_attention, assert_close

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HALF = torch.bfloat16
FLASH = BACKENDS["flash"].split(":")[0]


def call(kind="joint", device="cuda", dtype=HALF, tokens=1, group=4, dim=128, **more) -> Call:
    return Call(kind, device, dtype, tokens, 8, group, dim, **more)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def flash(monkeypatch):
    """The backend over a stand-in that has flash-attn's documented interface and nothing else."""

    def flash_attn_func(q, k, v, *, softmax_scale, causal, return_attn_probs):
        """[batch, seqlen, heads, headdim], causal aligned bottom-right; lse [batch, heads, T]."""
        assert q.ndim == k.ndim == v.ndim == 4 and len(q) == len(k) == len(v) == 1
        assert k.shape == v.shape and q.shape[3] == k.shape[3] and q.shape[2] % k.shape[2] == 0
        assert q.stride(3) == k.stride(3) == v.stride(3) == 1 and return_attn_probs
        k, v = k[0].transpose(0, 1), v[0].transpose(0, 1)
        o, lse = reference.dense_attention(q[0], k, v, softmax_scale, causal=causal)
        return o[None].to(q.dtype), lse.t()[None].contiguous(), None

    package = ModuleType("flash_attn")
    package.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.delitem(sys.modules, FLASH, raising=False)
    monkeypatch.setattr(attention, "find_spec", lambda name: name)
    return import_module(FLASH).FlashBackend()


def test_flash_reads_and_nothing_else(flash):
    assert flash.can(call(tokens=2048)) is None and flash.can(call(tokens=1))
    for other in (
        {"kind": "entries"}, {"parts": 2}, {"even": False}, {"bias": True}, {"bits": 4},
        {"device": "cpu"}, {"dtype": torch.float32}, {"dim": 260}, {"dim": 60},
    ):  # fmt: skip
        assert flash.can(call(tokens=9, **other)), other


@pytest.mark.parametrize("entries", [5, 60])
def test_flash_is_asked_for_what_it_offers(flash, entries):
    store = random_entries([entries] * 2, 16, padding=7)
    q = normal(5, 6, 16)
    assert_attention(
        flash.joint(q, [store], 0.25),
        reference.ragged_attention(q, [store], 0.25, causal=True),
        1e-6,
    )


@pytest.mark.parametrize("name, code", [("flash", "device"), ("magic", "usage")])
def test_a_missing_package_and_an_unknown_name_are_refused(name, code):
    assert "flash_attn" not in sys.modules
    assert isinstance(choose("auto", CPU), TorchBackend) and choose("torch", CPU).name == "torch"
    with pytest.raises(KvchatError, match=name) as caught:
        choose(name, CUDA)
    assert caught.value.code == code and "--attention auto" in caught.value.tries


def test_the_order_on_a_card(flash, monkeypatch):
    assert choose("auto", CUDA).name == "flash, triton, torch"
    assert choose("flash", CUDA).name == "flash, triton, torch"
    monkeypatch.setattr(attention, "find_spec", lambda name: name if name != "flash_attn" else None)
    assert choose("auto", CUDA).name == "triton, torch"
    assert choose("triton", CUDA).name == "triton"
    assert choose("torch", CUDA).name == "torch"


def test_triton_says_what_it_does_not_take(monkeypatch):
    triton = TritonBackend()
    assert triton.can(call()) is None
    assert triton.can(call(bits=4, parts=3, even=False, bias=True, tokens=9)) is None
    assert "256" in triton.can(call(dim=320))
    assert "16" in triton.can(call(group=32)) and "32" in triton.can(call(group=32))
    assert "torch.float16" in triton.can(call(dtype=torch.float64))
    monkeypatch.setattr("kvchat.kernels.tiles.INTERPRETED", False)
    assert "cpu" in triton.can(call(device="cpu"))


def test_the_first_that_can_answers_and_the_reasons_of_the_others_are_kept():
    triton, other = TritonBackend(), TorchBackend()
    chosen = Choice([triton, other])
    entries, q = random_entries([5, 3], 300), normal(1, 4, 300)
    want = reference.ragged_attention(q, [entries], 0.1)
    assert_close("o", chosen.attend(q, entries, 0.1)[0], want[0], 1e-6)
    assert chosen.joint(q, [entries, entries], 0.1) is None
    single, joint = (
        Call(kind, "cpu", torch.float32, 1, 2, 2, 300, parts, even=False)
        for kind, parts in (("entries", 1), ("joint", 2))
    )
    assert chosen.refused == {
        single: {"triton": triton.can(single)},
        joint: {"triton": triton.can(joint), "torch": other.can(joint)},
    }
    assert [line.split(":")[0] for line in chosen.report()] == [str(single), str(joint)]
    assert all("[1, 4, 300]" in line and "256" in line for line in chosen.report())


def test_if_all_refuse_every_shape_and_reason_is_said():
    chosen = Choice([TritonBackend()])
    k = normal(2, 3, 320)
    with pytest.raises(KvchatError, match=r"\[3, 80, 320\].*256") as caught:
        chosen.causal(normal(3, 80, 320).half(), k, k, 0.1)
    assert caught.value.details["refused"].keys() == {"triton"}
    assert caught.value.code == "device" and caught.value.tries


def test_even_rows_are_dense_views():
    entries = random_entries([4] * 3, 16, padding=2)
    assert Call.of("entries", normal(1, 3, 16), [entries]).even
    k, v = (dense(store, entries.spans) for store in (entries.k, entries.v))
    assert k.shape == (3, 4, 16) and not k.isnan().any() and not v.isnan().any()
    assert k.data_ptr() == entries.k[2].data_ptr()
    for lengths in ([4, 3], [4, 0, 4]):
        assert not Call.of("entries", normal(1, 6, 16), [random_entries(lengths, 16)]).even


class Foreign:
    """A segment that picks entries for each query: not stored, so it is asked by itself."""

    parts = None

    def __init__(self, segment):
        self.segment = segment

    def attend(self, q, scale, backend):
        return backend.attend(q, self.segment.entries, scale)


@pytest.mark.parametrize("tokens", [1, 4])
def test_a_layer_in_one_call_is_the_layer_in_parts(tokens):
    def segment(lengths, seed):
        entries = random_entries(lengths, 16, seed=seed)
        count = sum(lengths)
        return FlatSegment.of(entries.k, entries.v, lengths, torch.arange(count), (0, 0))

    def layer(backend):
        made = LayerCache(Tail(2, 16, torch.float32, CPU), backend)
        packed = QuantizedSegment.of(segment([70, 33], 3), 4)
        made.segments = [segment([40, 0], 1), Foreign(segment([9, 30], 2)), packed]
        made.tail.append(normal(2, 7, 16), normal(2, 7, 16, seed=1))
        return made

    q = normal(tokens, 8, 16)
    triton = Choice([TritonBackend()])
    assert_attention(layer(triton).attend(q, 0.25), layer(TorchBackend()).attend(q, 0.25), 1e-5)
    assert not triton.refused
