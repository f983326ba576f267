"""Which device and dtype a model has, and that every thread works on its card."""

import os
from collections.abc import Callable
from functools import wraps
from inspect import isgeneratorfunction, signature
from typing import Any, ParamSpec, TypeVar

import torch

from kvchat.engine.model.config import ModelConfig
from kvchat.engine.peers import ALONE, Peers
from kvchat.engine.sizes import DTYPES as NAMES
from kvchat.engine.weights.bits import computes_in
from kvchat.errors import KvchatError

P = ParamSpec("P")
R = TypeVar("R")
DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, kind) for short, kind in NAMES.items() for name in (short, kind)
}


def on_its_card(method: Callable[P, R]) -> Callable[P, R]:
    """The same for what one rank does by itself."""
    inner = torch.inference_mode()(method)

    @wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        engine: Any = args[0]
        engine.here()
        return inner(*args, **kwargs)

    @wraps(method)
    def steps(*args: P.args, **kwargs: P.kwargs) -> Any:
        engine: Any = args[0]
        engine.here()
        return (yield from inner(*args, **kwargs))  # type: ignore[misc]

    return steps if isgeneratorfunction(method) else run


def entry(method: Callable[P, R]) -> Callable[P, R]:
    """What runs a model: in inference mode, on the engine's card whatever thread calls it, and on
    all ranks that hold a part of the model."""
    inner, name, form = torch.inference_mode()(method), method.__name__, signature(method)

    def in_order(args: Any, kwargs: Any) -> tuple[Any, ...]:
        given = form.bind(*args, **kwargs)
        given.apply_defaults()  # or those behind a gap would be lost
        return given.args

    def begin(engine: Any) -> Any:
        engine.here()
        if engine.lead is not None:
            assert engine.number == engine.lead.loaded, "the other ranks have another model by now"
        return engine.lead

    @wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if (lead := begin(args[0])) is None:
            return inner(*args, **kwargs)
        given = in_order(args, kwargs)
        found: R = lead.call(name, lambda: inner(*given), given[1:])  # type: ignore[call-arg]
        return found

    @wraps(method)
    def steps(*args: P.args, **kwargs: P.kwargs) -> Any:
        lead = begin(args[0])  # when the first step is asked for, by who asks
        if lead is None:
            return (yield from inner(*args, **kwargs))  # type: ignore[misc]
        given = in_order(args, kwargs)
        return (yield from lead.steps(name, inner(*given), given[1:]))  # type: ignore[call-arg]

    return steps if isgeneratorfunction(method) else run


def resolve_device(name: str, peers: Peers = ALONE) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N`; of several ranks on cards each has its own.

    Raises KvchatError("device") if it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and peers.count > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', peers.rank)}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise KvchatError(
            "usage", f"{name!r} is not a device", "--device cpu", "--device cuda"
        ) from None
    if device.type not in ("cpu", "cuda"):
        raise KvchatError("usage", f"device {name!r} is not supported", "--device cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        why = "torch is a CPU build" if torch.version.cuda is None else "no device or driver"
        raise KvchatError("device", f"no CUDA here: {why}", "--device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise KvchatError("device", f"{name}: there are {count} CUDA devices", "--device cuda:0")
    return device


def resolve_dtype(name: str, config: ModelConfig, weights: str = "auto") -> torch.dtype:
    """`auto` is the checkpoint's own dtype, or bf16 if `weights` say so; else `f32`, `bf16`, `f16`.

    Raises KvchatError("usage") for other names, and for a format of weights that does not exist.
    """
    name = computes_in(name, weights)
    if name == "auto":
        return DTYPES[config.dtype]
    if name not in DTYPES:
        raise KvchatError(
            "usage", f"{name!r} is not a dtype", "--dtype auto", "--dtype bf16", "--dtype f32"
        )
    return DTYPES[name]
