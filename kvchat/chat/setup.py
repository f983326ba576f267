"""What is settled before the weights load: device, sizes, method. Nothing large is read."""

from dataclasses import dataclass

import torch

from kvchat.chat import auto
from kvchat.chat.generation import with_model_defaults
from kvchat.chat.prepare import Prepared
from kvchat.chat.tails import require_tail
from kvchat.engine import gates
from kvchat.engine.budget import Budget
from kvchat.engine.devices import resolve_device, resolve_dtype
from kvchat.engine.methods import AUTO, UNSEEN
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.simple import Full
from kvchat.engine.sizes import CHUNKS
from kvchat.errors import KvchatError
from kvchat.machine import ranks
from kvchat.machine import resources as machine
from kvchat.machine.plan import Workload, planned
from kvchat.settings.options import Options


@dataclass(frozen=True)
class Setup:
    """What is settled before the weights load: how to compute, and how to compress."""

    prepared: Prepared
    options: Options
    device: torch.device
    dtype: torch.dtype
    limit: int
    chunk: int
    method: Method
    ends: list[int]

    def free(self) -> int:
        """Bytes that are free for each part of the model."""
        free = machine.free(self.device, self.options.mem_limit)
        return free if self.device.type == "cuda" else free // parts(self.options)

    def workload(self, tokens: int) -> Workload:
        """What is planned for a document of so many tokens."""
        return Workload(
            self.prepared.config,
            self.dtype.itemsize,
            tokens,
            planned(self.method),
            self.limit,
            self.chunk,
            self.device.type == "cuda",
            self.options.weights,
            self.options.streams,
            self.options.attention,
            parts(self.options),
        )


def settle(prepared: Prepared) -> Setup:
    """Device, method, sampling and sizes. Raises KvchatError."""
    options, config = prepared.options, prepared.config
    if options.threads:
        torch.set_num_threads(options.threads)
    method = chosen_method(options, gated(prepared))
    if options.full_copy == "disk" and options.prompt_cache != "on":
        raise KvchatError(
            "usage",
            "a full copy on disk is part of the prompt cache, and --prompt-cache is "
            f"{options.prompt_cache}",
            "--prompt-cache on",
            "--keep-full host",
        )
    if options.select == "question" and options.full_copy == "off" and not options.foreseen:
        raise KvchatError(
            "usage",
            "--select question chooses from a full copy for every question, and --keep-full is off",
            "--keep-full host",
            "-p QUESTION  (known before the prefill)",
        )
    require_tail(options, method)
    several = parts(options) > 1
    if several and options.select == "question":
        ranks.refuse(options.devices, "--select question")
    if several and options.full_copy == "disk":
        ranks.refuse(options.devices, "--keep-full disk")
    options, ends = with_model_defaults(options, prepared.model)
    device = resolve_device(options.device)
    return Setup(
        prepared,
        options,
        device,
        resolve_dtype(options.dtype, config, options.weights),
        config.window(options.ctx_size),
        options.prefill_chunk or CHUNKS[device.type],
        method,
        ends,
    )


def parts(options: Options) -> int:
    """How many processes hold a part of the model: one has all of it where each has documents of
    its own."""
    return 1 if options.each else ranks.wanted(options.devices)


def chosen_method(options: Options, gated: bool) -> Method:
    """The method of `--method`, `-O` and `--budget`; where memory decides, the one for questions
    that are not known yet. `gated`: whether the model has a gate. Raises KvchatError("usage").
    """
    if options.method == AUTO:
        return auto.unseen(options, gated)
    budget = Budget.parse(options.budget) if options.budget else None
    method = parse_method(options.method, budget, options.method_pairs)
    if budget is not None and isinstance(method, Full) and options.origin("budget") == "flag":
        raise KvchatError(
            "usage",
            "full keeps everything and takes no budget",
            f"--method {UNSEEN} --budget {budget}",
        )
    return method


def gated(prepared: Prepared) -> bool:
    """Whether there is a gate for the model, as its checkpoint says."""
    return gates.exists(prepared.model.path, prepared.config)
