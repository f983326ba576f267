"""Which device and dtype a model has, and that every thread works on its card."""

from collections.abc import Callable
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any, ParamSpec, TypeVar

import torch

from kvchat.engine.model.config import ModelConfig
from kvchat.engine.sizes import DTYPES as NAMES
from kvchat.engine.weights.bits import computes_in
from kvchat.errors import KvchatError

P = ParamSpec("P")
R = TypeVar("R")
DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, kind) for short, kind in NAMES.items() for name in (short, kind)
}


def entry(method: Callable[P, R]) -> Callable[P, R]:
    """What runs a model: in inference mode, and on the engine's card whatever thread calls it."""
    inner = torch.inference_mode()(method)

    def begin(engine: Any) -> None:
        engine.here()

    @wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        begin(args[0])
        return inner(*args, **kwargs)

    @wraps(method)
    def steps(*args: P.args, **kwargs: P.kwargs) -> Any:
        begin(args[0])  # when the first step is asked for, by who asks
        return (yield from inner(*args, **kwargs))  # type: ignore[misc]

    return steps if isgeneratorfunction(method) else run


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N`. Raises KvchatError("device") if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
