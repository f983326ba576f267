"""A stand-in for a CUDA graph on a CPU: operations are written down with their tensors and run
again on the same memory, so whatever the host decided while recording stays decided."""

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method
from tests.engine import tiny

DOCUMENT = tiny.random_ids(120)
CACHES = ["full", "adakv:budget=25%", "h2o:budget=80%,bits=4"]
WARM = Sampling(temperature=0.8, top_k=40, top_p=0.95, min_p=0.01, repeat_penalty=1.2, seed=5)

# What makes the host wait for a device, by name: numbers it reads, shapes that depend on values.
WAITING = ("_local_scalar_dense", "item", "nonzero", "masked_select", "_unique2", "equal",
           "is_nonzero", "repeat_interleave", "bincount")  # fmt: skip


BY_INDEX = ("index", "index_put", "index_put_", "_index_put_impl_")  # with a mask they wait


class Waited(RuntimeError):
    """As a card says that an operation is not permitted while it is recorded."""


class Recording(TorchDispatchMode):
    """Writes down every operation; one that makes the host wait is refused."""

    def __init__(self, refuse: bool = True):
        super().__init__()
        self.refuse = refuse
        self.calls: list[tuple[Any, tuple, dict, list[torch.Tensor]]] = []
        self.waits: list[str] = []

    def waited(self, name: str) -> None:
        """Note that the host would wait."""
        self.waits.append(name)
        if self.refuse:
            raise Waited(f"{name} is not permitted while a step is recorded")

    def __enter__(self):
        self._real = torch.Tensor.tolist
        torch.Tensor.tolist = lambda tensor: self.waited("tolist") or self._real(tensor)
        return super().__enter__()

    def __exit__(self, *error):
        torch.Tensor.tolist = self._real
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        by_mask = any(leaf.dtype == torch.bool for leaf in given[1:])
        if name in WAITING or (by_mask and name in BY_INDEX):
            self.waited(name)
        out = func(*args, **kwargs)
        held = {leaf.untyped_storage().data_ptr() for leaf in given}
        new = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        fresh = [leaf for leaf in new if leaf.untyped_storage().data_ptr() not in held]
        if fresh or func._schema.is_mutable:  # a view of what is there needs no second time
            self.calls.append((func, args, kwargs, fresh))
        return out

    def replay(self) -> None:
        """Everything once more; what an operation made before is overwritten in its place."""
        for func, args, kwargs, before in self.calls:
            out = func(*args, **kwargs)
            if before:
                now = (leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))
                for old, new in zip(before, now, strict=True):
                    old.copy_(new)


class Recorder:
    """`record` of a `Writer`; what runs again was recorded when it ran again first."""

    def __init__(self):
        self.recordings: list[Recording] = []
        self.replays = 0

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        recording = Recording()
        self.recordings.append(recording)

        def run() -> None:
            if recording.calls:
                self.replays += 1
                recording.replay()
                return
            with recording:
                work()

        return run


def begun(engine, method="full", talk=()):
    """A cache of a document, a question and more `talk`, and the logits after them."""
    cache, _ = tiny.read(engine, DOCUMENT, parse_method(method))
    logits = drain(engine.extend(cache, [5, 6, 7]))
    return cache, drain(engine.extend(cache, talk)) if talk else logits


def written(engine, method, sampling, count, talk=()):
    """Tokens, what the cache counted when each was given out, and the logits after the last."""
    cache, logits = begun(engine, method, talk)
    tokens, counted = [], []
    for token in islice(engine.decode(cache, logits, sampling), count):
        tokens.append(token)
        counted.append((cache.position, *(layer.tail.length for layer in cache.layers)))
    return tokens, counted, drain(engine.extend(cache, tokens[-1:]))
