"""How many kernels a card starts for a layer and token, counted where there is none: Triton's by
its interpreter, torch's by what it dispatches."""

import threading
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import GridExecutor

from kvchat.engine import ops
from kvchat.engine.attention.choice import Choice
from kvchat.engine.attention.triton_backend import TritonBackend
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.decode.graph import Step
from kvchat.engine.decode.loop import Writer
from kvchat.engine.decode.sampler import Sampler
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.methods.build import parse_method
from kvchat.engine.weights import linear
from tests.engine import tiny
from tests.engine.test_families import CASES
from tests.support.closeness import assert_close

# Nothing is computed by these.
VIEWS = {
    "view", "_unsafe_view", "as_strided", "transpose", "t", "permute", "expand", "slice", "select",
    "squeeze", "unsqueeze", "split", "split_with_sizes", "unbind", "detach", "alias", "empty",
    "empty_like", "new_empty", "empty_strided", "chunk", "flatten", "narrow", "_reshape_alias",
}  # fmt: skip
IDS = tiny.random_ids(60)


def here():
    """Kernels for this thread; what an earlier test compiles in another goes on as it was."""
    own = threading.get_ident()
    return lambda path, _: ops._loaded(path) if threading.get_ident() == own else None


class Launches(TorchDispatchMode):
    """Counts what a card would start."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []
        self._inside = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        out = func(*args, **(kwargs or {}))
        same = name == "to" and out is args[0]
        if not self._inside and name not in VIEWS and not same:
            self.names.append(name)
        return out

    @contextmanager
    def triton(self, monkeypatch):
        real = GridExecutor.__call__

        def launch(executor, *args, **options):
            self.names.append(executor.fn.__name__)
            self._inside = True
            try:
                return real(executor, *args, **options)
            finally:
                self._inside = False

        with monkeypatch.context() as patched:
            patched.setattr(GridExecutor, "__call__", launch)
            patched.setattr(ops, "kernel", here())
            with self:
                yield


def begun(folder, method):
    """A cache of a document and a step over it, as on a card: maps joined, our kernels."""
    engine = tiny.load_engine(folder)
    engine.kernels = "torch"  # nothing is compiled beside
    for block in engine.model.blocks:
        block.join()
    cache, logits = tiny.read(engine, IDS, parse_method(method))
    assert Writer(engine.model).refusal(cache) == ""
    for layer in cache.walked:  # the prefill goes without, which is faster here
        layer.backend = Choice([TritonBackend()])
        if isinstance(layer, LayerCache):
            layer._joint = layer.backend
        layer.tail.grow(2)
    sampler = Sampler(Sampling(), engine.device)
    token = sampler.draw(logits)
    return cache, token, Step(engine.model, cache, token, sampler, 2)


KINDS = {
    "llama": ({}, "full", 10),
    "qwen3": (CASES["qwen3"], "adakv:budget=40%,window=8", 10),
    "olmo2": (CASES["olmo2"], "full", 10),
    "ministral3": (CASES["ministral3"], "full", 10),
    "gemma3": (CASES["gemma3"] | {"layer_types": None}, "full", 10),
    "pqcache": ({}, "pqcache:budget=40%,dense_below=0,code_bits=3", 12),
    "4 bits": ({}, "h2o:budget=80%,bits=4", 10),
}


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_launches_of_a_layer(tmp_path, kind, monkeypatch):
    """A model of two layers starts so many more than one of one."""
    changes, method, most = KINDS[kind]
    counts, found = [], []
    for layers in (1, 2):
        given = dict(changes)
        if "layer_types" in given:
            given["layer_types"] = ["sliding_attention", "full_attention"][-layers:]
        folder = tiny.save_model(tmp_path / str(layers), **(given | {"num_hidden_layers": layers}))
        _, token, step = begun(folder, method)
        launches, written = Launches(), [token]
        for _ in range(2):  # the first one makes what stays
            launches.names.clear()
            with launches.triton(monkeypatch):
                step()
            written.append(int(step.token))
        counts.append(len(launches.names))
        found.append(list(launches.names))
        plain = tiny.load_engine(folder)
        plain.kernels = "torch"
        again, _ = tiny.read(plain, IDS, parse_method(method))
        want = plain.score(again, written[:2], 2)
        assert written[1:] == want.argmax(dim=-1).tolist()
    assert 0 < counts[1] - counts[0] <= most, " ".join(found[1])


@pytest.mark.parametrize("weights", ["int8", "int4"])
@torch.inference_mode()
def test_weights_in_few_bits_are_read_once_and_turned_back_once(weights, monkeypatch):
    """As on a card: a token by one product, the chunks of a document by one turning back."""
    kind = linear.STORED[weights]
    monkeypatch.setattr(linear.lowbit, "_pack", linear.lowbit.pairs)
    module = kind.of(torch.randn(64, 256), torch.randn(64))
    numbers = module._numbers
    monkeypatch.setattr(ops, "kernel", here())
    monkeypatch.setattr(linear, "on_host", lambda x: False)
    want = None
    for held in (False, True):
        module.hold(held)
        turned = []
        monkeypatch.setattr(
            module, "_numbers", lambda dtype, to=turned: to.append(dtype) or numbers(dtype)
        )
        launches, one = Launches(), torch.ones(1, 256)
        with launches.triton(monkeypatch):
            few = module(one)
        assert launches.names == [{"int8": "_eight", "int4": "_four"}[weights]] and not turned
        many = [module(torch.ones(100, 256)) for _ in range(3)]
        assert len(turned) == held  # without, slices are, as views
        assert_close("few and many", few[0], many[-1][0], 1e-5)
        want = many[-1] if want is None else want
        assert_close("as before", many[-1], want, 1e-6)
    module.hold(False)
    assert module._held is None
    for room, holds in ((2**40, True), (linear.ROOM, False)):
        monkeypatch.setattr(linear, "spare", lambda device, room=room: room)
        with linear.held([module, torch.nn.Linear(2, 2)], 2):
            assert module.holds == holds
        assert not module.holds
