"""What a card would do that is not here: backends that do not load, threads on another card, memory
that is bounded, locked host memory, kernels that are compiled beside the loading."""

import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest
import torch

from kvchat.engine import attention, ops
from kvchat.engine.attention import torch_backend
from kvchat.engine.attention.choice import choose
from kvchat.engine.attention.entries import Entries
from kvchat.engine.attention.torch_backend import plain_attend, plain_causal
from kvchat.engine.cache import homes
from kvchat.engine.decode import warm_card
from kvchat.engine.events import drain
from kvchat.engine.kernels import kernels_on
from kvchat.engine.loading import load_engine
from kvchat.engine.methods.build import parse_method
from kvchat.engine.model.read import load_config
from kvchat.engine.store.cached_document import Part
from kvchat.engine.store.header import describe
from kvchat.errors import KvchatError
from kvchat.kernels import reference, toolchain
from tests.engine import tiny

CUDA = torch.device("cuda", 1)


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)


def test_a_package_that_does_not_load_is_passed_over(monkeypatch):
    """flash-attn that was built for another torch; who asks for it by name is told."""
    broken = ModuleType("flash_attn")  # without the function that is imported of it
    monkeypatch.setitem(sys.modules, "flash_attn", broken)
    monkeypatch.delitem(sys.modules, attention.BACKENDS["flash"].split(":")[0], raising=False)
    monkeypatch.setattr(attention, "find_spec", lambda name: name)
    found = choose("auto", CUDA)
    assert [each.name for each in found.backends] == ["triton", "torch"]
    assert "flash_attn_func" in found.broken["flash"] and len(found.report()) == 1
    with pytest.raises(KvchatError) as refused:
        choose("flash", CUDA)
    assert refused.value.details["why"] == found.broken["flash"]


def test_kernels_need_a_compiler(no_compiler, monkeypatch):
    assert toolchain.compiler() == "" and toolchain.lacking()
    assert kernels_on("cuda") == "torch"
    found = choose("auto", CUDA)
    assert [each.name for each in found.backends] == ["torch"]
    assert found.broken == {"triton": toolchain.lacking()}
    for ask in (lambda: choose("triton", CUDA), lambda: kernels_on("cuda", "triton")):
        with pytest.raises(KvchatError) as refused:
            ask()
        assert refused.value.code == "device" and refused.value.details["why"]
    monkeypatch.setenv("CC", "/a/compiler")
    assert toolchain.compiler() == "/a/compiler" and kernels_on("cuda") == "triton"


def test_every_entry_takes_its_thread_to_the_card(checkpoint, monkeypatch):
    """`set_device` holds for one thread: that which saves runs the model too."""
    engine, went = tiny.load_engine(checkpoint()), []
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: went.append((threading.get_ident(), device))
    )
    engine.device = CUDA

    def score():
        engine.score(engine.empty_cache(), [1, 2, 3])

    threads = [threading.Thread(target=score) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    drain(engine.extend(engine.empty_cache(), [1, 2]))
    assert {device for _, device in went} == {CUDA}
    every = [*(t.ident for t in threads), threading.get_ident()]
    assert [number for number, _ in went[::2]] == [number for number, _ in went[1::2]] == every


@pytest.mark.parametrize("tokens, entries", [(40, 300), (1, 5000), (300, 300)])
def test_plain_attention_has_a_bound(tokens, entries, monkeypatch):
    """Logits, and keys in fp32, of one product; a single query over one head is the least."""
    monkeypatch.setattr(torch_backend, "PLAIN_VALUES", 20_000)
    heads, group, dim, asked = 2, 3, 16, []
    q, k = torch.randn(tokens, heads * group, dim), torch.randn(heads, entries, dim)
    real = reference.dense_attention

    def noted(q, k, *rest, **more):
        asked.append((q.shape[0] * q.shape[1] * k.shape[1], k.numel()))
        return real(q, k, *rest, **more)

    monkeypatch.setattr(torch_backend, "dense_attention", noted)
    start = torch.arange(heads, dtype=torch.int32) * entries
    spans = tuple((head * entries, entries) for head in range(heads))
    flat = k.flatten(0, 1)
    stored = Entries(flat, flat, start, torch.full_like(start, entries), spans)
    o, _ = plain_attend(q, stored, 0.25)
    least = group * entries, entries * dim
    assert all(n <= max(20_000, low) for pair in asked for n, low in zip(pair, least, strict=True))
    want, _ = real(q, k, k, 0.25, causal=False)
    assert torch.allclose(o, want, atol=1e-5)
    if tokens == entries:
        asked.clear()
        o, _ = plain_causal(q, k, k, 0.25)
        assert max(logits for logits, _ in asked) <= 20_000
        assert torch.allclose(o, real(q, k, k, 0.25, causal=True)[0], atol=1e-5)


class Driver:
    """`cudaHostRegister` and its opposite."""

    def __init__(self, grants=True):
        self.locked, self.grants = {}, grants

    def cudaHostRegister(self, address, size, flags):
        self.locked |= {address: size} if self.grants else {}
        return 0 if self.grants else 712

    def cudaHostUnregister(self, address):
        del self.locked[address]
        return 0


@pytest.mark.parametrize("grants", [True, False])
def test_host_memory_is_locked_as_it_is_and_let_go(monkeypatch, grants):
    driver = Driver(grants)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    store = homes.locked((3, 1000, 7), torch.bfloat16)
    assert store.shape == (3, 1000, 7) and store.dtype == torch.bfloat16
    part = store[1:, 5:].fill_(2.0)
    assert driver.locked == ({store.data_ptr(): store.nbytes} if grants else {})
    del store
    assert bool((part == 2).all()) and len(driver.locked) == grants, "a view holds it"
    del part
    assert driver.locked == {}


def test_entries_come_back_to_where_they_were(monkeypatch):
    driver = Driver()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    pool = torch.randn(2, 50, 8)
    part = Part("pq", (0, 50), {"pool": pool})
    assert part.home(CUDA) == "disk", "neither on the card nor locked"
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: True)
    assert part.home(CUDA) == "host" and part.home(torch.device("cpu")) == "device"
    assert Part("flat", (0, 50), {"k": pool}).home(CUDA) == "device"
    back = homes.placed(pool, "host", CUDA)
    assert torch.equal(back, pool) and driver.locked == {back.data_ptr(): pool.nbytes}
    assert homes.placed(pool, "disk", CUDA) is pool
    written = describe("a kind", "", {}, [[{"kind": "pq", "span": (0, 50), "home": "host"}]])
    assert '"home": "host"' in written["segments"]


def test_what_kernels_are_compiled_for_is_not_shrunk(tmp_path):
    config = load_config(tiny.save_model(tmp_path, num_hidden_layers=3))
    small = warm_card.shrunk(config)
    assert small.num_layers == 1
    for name in ("hidden_size", "num_heads", "num_kv_heads", "head_dim", "activation", "norms"):
        assert getattr(small, name) == getattr(config, name)
    methods = [parse_method("adakv:budget=50%")]
    names: set[str] = set()
    plain = ops.kernel
    ops.kernel = lambda path, x: names.add(path)
    try:
        backend = tiny.torch_backend()
        warm_card.warm(config, torch.float32, torch.device("cpu"), "auto", backend, methods)
    finally:
        ops.kernel = plain
    step = {"norm_rope:add_rms_norm", "place:place_entries", "mass:window_mass", "norm_rope:swiglu"}
    assert step <= names


def test_kernels_that_do_not_run_are_done_without(checkpoint, monkeypatch):
    """Said, unless somebody asked for them by name; memory that is short says nothing of them."""
    folder = checkpoint()
    config, said = load_config(folder), []

    cpu = torch.device("cpu")
    for problem, why in ((OSError("no libcuda.so\nat all"), "no libcuda.so"), (MemoryError(), "")):

        def fails(*given, problem=problem):
            raise problem

        monkeypatch.setattr(warm_card, "warm", fails)
        warming = warm_card.Warming(config, torch.float32, cpu, "auto", None, ())
        assert warming.ended(5.0) and warming.problem == why
    made = SimpleNamespace(problem="no libcuda.so", ended=lambda seconds: bool(said))
    monkeypatch.setattr("kvchat.engine.loading.Warming", lambda *given: made)
    stand_in = {"auto": "triton"}
    monkeypatch.setattr(
        "kvchat.engine.loading.kernels_on", lambda device, name="auto": stand_in.get(name, name)
    )
    monkeypatch.setattr("kvchat.engine.loading.WAIT", 0.0)
    loading = load_engine(folder, config, "f32", "cpu")
    engine = drain(loading, lambda event: said.append(event.note) if event.note else None)
    assert said and engine.kernels == "torch"
    with pytest.raises(KvchatError) as refused:
        drain(load_engine(folder, config, "f32", "cpu", kernels="triton"))
    assert refused.value.details["why"] == "no libcuda.so"
