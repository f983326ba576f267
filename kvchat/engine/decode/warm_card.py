"""Compiling a card's kernels before they are wanted: a model of one layer of each kind reads,
compresses and writes, with the sizes that kernels are compiled for and few numbers otherwise."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import torch

from kvchat.engine.attention.entries import Backend
from kvchat.engine.decode.loop import Writer
from kvchat.engine.decode.sampler import Sampler
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import drain
from kvchat.engine.methods.base import Method
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.prefill.prefill import Compression, prefill
from kvchat.engine.prefill.walk import extend
from kvchat.engine.weights.checkpoint import random_weights
from kvchat.errors import is_out_of_memory

TOKENS = 1543  # of the document: enough to choose from, for every method
CHUNK = 1024  # and a rest that is no multiple of 16: Triton makes another kernel for such numbers
QUESTIONS = (20, 3)  # tokens of questions: blocks of queries are of two sizes
WRITTEN = 3
SMALL = 256  # the vocabulary and the inside of the MLP, which no kernel is compiled for


def shrunk(config: ModelConfig) -> ModelConfig:
    """A model with one layer of each kind, and everything that kernels are compiled for."""
    return replace(
        config,
        layers=tuple(dict.fromkeys(config.layers)),
        vocab_size=SMALL,
        intermediate_size=SMALL,
        max_position=max(config.max_position, 2 * TOKENS),
        blocks=(),
    )


@torch.inference_mode()
def warm(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    weights: str,
    backend: Backend,
    methods: Sequence[Method],
) -> None:
    """Launch what a chat launches. Raises whatever a compiler or a driver raises."""
    small = shrunk(config)
    model = random_weights(small, dtype, device, weights=weights)
    ids = [number % SMALL for number in range(TOKENS)]
    for method in methods:
        made = drain(prefill(model, ids, [Compression(method)], backend, CHUNK))
        cache = made.caches[0]
        for count in QUESTIONS:
            x = drain(extend(model, cache, ids[:count], TOKENS))
        writer = Writer(model, lambda work: work)  # a recording is the chat's own
        sampler = Sampler(Sampling(), device)
        list(islice(writer.write(cache, model.logits(x[-1:])[0], sampler), WRITTEN))
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Warming:
    """`warm` in a thread of its own, beside the loading of the weights; `problem` says why kernels
    cannot run, when it has ended."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        weights: str,
        backend: Backend,
        methods: Sequence[Method],
    ):
        self.problem = ""
        self._given = config, dtype, device, weights, backend, methods
        self._thread = threading.Thread(target=self._run, name="kvchat-kernels", daemon=True)
        self._thread.start()

    def ended(self, seconds: float) -> bool:
        """Whether it has ended, after so many seconds at most."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        device = self._given[2]
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            warm(*self._given)
        except Exception as error:  # of a compiler, a linker, a driver: each has its own
            if is_out_of_memory(error):
                return  # the chat's own plan says whether there is enough
            self.problem = str(error).partition("\n")[0] or type(error).__name__
