"""Checkpoints: finds the safetensors of a folder, checks them, streams them into a model.

Strict: missing, unexpected or misshapen tensors are errors. Nothing is read but headers until
`load_weights`.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from kvchat.engine.model import MODELS
from kvchat.engine.model.config import LFS_MARK, ModelConfig, read_json
from kvchat.engine.model.decoder import Decoder, empty_decoder
from kvchat.engine.sizes import DTYPES, ITEM_BYTES
from kvchat.engine.weights import lowbit
from kvchat.engine.weights.bits import require_shapes
from kvchat.engine.weights.linear import STORED, TABLES, in_few_bits
from kvchat.errors import KvchatError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
OTHER_FORMATS = {".bin": "pickle", ".pth": "pickle", ".pt": "pickle", ".gguf": "GGUF"}


def find_shards(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, all present. Raises KvchatError("model")."""
    if (folder / SINGLE).exists():
        shards = [folder / SINGLE]
    elif (folder / INDEX).exists():
        shards = _indexed(folder)
    else:
        raise _no_weights(folder)
    for shard in shards:
        with shard.open("rb") as file:
            if file.read(len(LFS_MARK)) == LFS_MARK:
                raise KvchatError(
                    "model",
                    f"{shard} is a {shard.stat().st_size}-byte Git LFS pointer, not weights",
                    f"git -C {folder} lfs pull",
                )
    return shards


def load_weights(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    weights: str = "auto",
) -> Iterator[tuple[int, int] | Decoder]:
    """Build the model and stream its tensors in, one at a time.

    Yields `(bytes done, bytes in all)` of the checkpoint, first with nothing done but every name
    and shape checked from the headers, then the model. On the CPU, tensors that already have the
    wanted dtype stay mapped to the file; others are converted, or stored in the few bits of
    `weights`, one by one. Raises KvchatError("model") listing at most five names and the file, or
    the shapes that cannot be stored as `weights`.
    """
    model = _build(config, weights)
    with ExitStack() as opened:
        places, total = _checked(folder, model, opened)
        done = 0
        yield done, total
        for name, file in places.items():
            tensor = file.get_tensor(name)
            _place(model, name, tensor.to(device), dtype)
            done += tensor.nbytes
            yield done, total
    yield _finished(model)


def random_weights(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
    weights: str = "auto",
) -> Decoder:
    """The model of a config with random weights (std 0.02), for `bench --dummy`."""
    model = _build(config, weights)
    generator = torch.Generator(device=device).manual_seed(seed)
    for name, slot in list(model.named_parameters()):
        if name.endswith("norm.weight"):
            tensor = torch.ones(slot.shape, dtype=dtype, device=device)
        else:
            tensor = torch.empty(slot.shape, dtype=dtype, device=device)
            tensor.normal_(0.0, 0.02, generator=generator)
        _place(model, name, tensor, dtype)
    return _finished(model)


def _build(config: ModelConfig, weights: str) -> Decoder:
    require_shapes(config, weights)
    module, cls = MODELS[config.family].split(":")
    model = empty_decoder(getattr(import_module(module), cls), config)
    model.weights = weights
    return model


def _checked(folder: Path, model: Decoder, opened: ExitStack) -> tuple[dict[str, Any], int]:
    """The open file of every tensor of the model, in the files' order, and the bytes of all."""
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    shapes: dict[str, tuple[tuple[int, ...], Path]] = {}
    places: dict[str, Any] = {}
    size = 0
    ignored = _ignored(model.config)
    for shard in find_shards(folder):
        file = opened.enter_context(_opened(shard))
        for name in file.keys():  # noqa: SIM118 - not a dict
            header = file.get_slice(name)
            shapes[name] = (tuple(header.get_shape()), shard)
            if name.endswith(ignored):
                continue
            kind = header.get_dtype()
            if (dtype := DTYPES.get(kind.lower())) is None:
                raise KvchatError(
                    "model",
                    f"{shard}: {name} has dtype {kind}; weights are read as "
                    f"{', '.join(DTYPES).upper()}",
                    "use the original checkpoint in bf16, f16 or f32",
                )
            size += math.prod(shapes[name][0]) * ITEM_BYTES[dtype]
            places[name] = file
    missing = [name for name in wanted if name not in shapes]
    unexpected = [name for name in places if name not in wanted]
    wrong = [
        f"{name} is {list(shapes[name][0])}, not {list(shape)} ({shapes[name][1].name})"
        for name, shape in wanted.items()
        if name in shapes and shapes[name][0] != shape
    ]
    for what, names in (("lacks", missing), ("has unknown", unexpected), ("misshapen:", wrong)):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise KvchatError(
                "model",
                f"{folder} {what} {len(names)} tensor{'s' * (len(names) > 1)}: "
                f"{', '.join(names[:5])}{more}",
                tensors=names[:5],
            )
    return places, size


def _finished(model: Decoder) -> Decoder:
    """The model once every tensor has its place."""
    lowbit.room.cache_clear()
    model.tie()
    return model.eval()


def _place(model: Decoder, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    """Give a tensor its place; a matrix in few bits takes the place of the module itself."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if model.weights in STORED and tensor.ndim == 2:
        stored = TABLES if module is model.lm_head else model.weights
        model.set_submodule(path, in_few_bits(module, tensor, stored, dtype))
    else:
        setattr(module, leaf, nn.Parameter(tensor.to(dtype), requires_grad=False))


def _ignored(config: ModelConfig) -> tuple[str, ...]:
    """Names that may stand in a file though the model has no slot for them."""
    tied = ("lm_head.weight",) if config.tie_word_embeddings else ()
    return (*tied, "rotary_emb.inv_freq")


def _opened(shard: Path) -> Any:
    try:
        return safe_open(shard, framework="pt")
    except (SafetensorError, OSError) as error:
        raise KvchatError(
            "model",
            f"{shard} is damaged or not safetensors ({shard.stat().st_size:,} bytes): {error}",
            "download the file again",
        ) from None


def _indexed(folder: Path) -> list[Path]:
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise KvchatError("model", f"{folder / INDEX} is not a valid index")
    names = sorted(set(index.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise KvchatError(
            "model",
            f"{folder}: missing {len(missing)} of {len(names)} shards: {', '.join(missing[:5])}",
            "download the missing files into the folder",
            missing=missing,
        )
    return [folder / name for name in names]


def _no_weights(folder: Path) -> KvchatError:
    for file in sorted(folder.iterdir()):
        if kind := OTHER_FORMATS.get(file.suffix):
            return KvchatError(
                "model",
                f"{folder} has only {kind} weights ({file.name}), which kvchat does not load",
                "use the checkpoint's safetensors, or convert it to safetensors",
            )
    return KvchatError(
        "model", f"{folder} has no {SINGLE} and no {INDEX}", "download the weights into the folder"
    )
