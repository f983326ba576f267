"""Checkpoints: finds the safetensors of a folder, checks them, streams them into a model.

Strict: missing, unexpected or misshapen tensors are errors. Nothing is read but headers until
`load_weights`.
"""

import math
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from kvchat.engine.model import MODELS
from kvchat.engine.model.config import LFS_MARK, ModelConfig, read_json
from kvchat.engine.model.decoder import Decoder, empty_decoder
from kvchat.engine.weights import lowbit
from kvchat.engine.weights.bits import require_shapes
from kvchat.engine.weights.linear import STORED, TABLES, in_few_bits
from kvchat.errors import KvchatError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
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


def check_weights(folder: Path, config: ModelConfig, weights: str = "auto") -> int:
    """Compare every tensor's name and shape with the model, from headers alone.

    Returns the bytes of the checkpoint's tensors. Raises KvchatError("model") listing at most five
    names and the file, or the shapes that cannot be stored as `weights`.
    """
    require_shapes(config, weights)
    shapes: dict[str, tuple[tuple[int, ...], Path]] = {}
    ignored = _ignored(config)
    size = 0
    for shard in find_shards(folder):
        with _opened(shard) as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                header = file.get_slice(name)
                shapes[name] = (tuple(header.get_shape()), shard)
                if _skip(name, ignored):
                    continue
                if (kind := header.get_dtype()) not in ITEM_BYTES:
                    raise KvchatError(
                        "model",
                        f"{shard}: {name} has dtype {kind}; weights are read as "
                        f"{', '.join(ITEM_BYTES)}",
                        "use the original checkpoint in bf16, f16 or f32",
                    )
                size += math.prod(shapes[name][0]) * ITEM_BYTES[kind]
    model = _build(config)
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    missing = [name for name in wanted if name not in shapes]
    unexpected = [name for name in shapes if name not in wanted and not _skip(name, ignored)]
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
    return size


def load_weights(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    weights: str = "auto",
) -> Iterator[tuple[int, int] | Decoder]:
    """Build the model and stream its tensors in, one at a time.

    Yields `(bytes done, bytes in all)` of the checkpoint, first with nothing done but everything
    checked, then the model. On the CPU, tensors that already have the wanted dtype stay mapped to
    the file; others are converted, or stored in the few bits of `weights`, one by one.
    """
    total = check_weights(folder, config, weights)
    yield 0, total
    model = _build(config, weights)
    slots = dict(model.named_parameters())
    ignored = _ignored(config)
    done = 0
    for shard in find_shards(folder):
        with _opened(shard) as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                if _skip(name, ignored):
                    continue
                tensor = file.get_tensor(name)
                _place(model, name, tensor.to(device), dtype)
                slots.pop(name)
                done += tensor.nbytes
                yield done, total
    assert not slots, f"not loaded: {sorted(slots)}"
    lowbit.room.cache_clear()
    model.tie()
    yield model.eval()


def random_weights(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
    weights: str = "auto",
) -> Decoder:
    """The model of a config with random weights (std 0.02), for `bench --dummy`."""
    require_shapes(config, weights)
    model = _build(config, weights)
    generator = torch.Generator(device=device).manual_seed(seed)
    for name, slot in list(model.named_parameters()):
        if name.endswith("norm.weight"):
            tensor = torch.ones(slot.shape, dtype=dtype, device=device)
        else:
            tensor = torch.empty(slot.shape, dtype=dtype, device=device)
            tensor.normal_(0.0, 0.02, generator=generator)
        _place(model, name, tensor, dtype)
    lowbit.room.cache_clear()
    model.tie()
    return model.eval()


def _build(config: ModelConfig, weights: str = "auto") -> Decoder:
    module, cls = MODELS[config.family].split(":")
    model = empty_decoder(getattr(import_module(module), cls), config)
    model.weights = weights
    return model


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


def _skip(name: str, ignored: tuple[str, ...]) -> bool:
    return name.endswith(ignored)


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
                f"{folder} has only {kind} weights ({file.name}); {kind} checkpoints are not "
                "loaded",
                "use the checkpoint's safetensors, or convert it to safetensors",
            )
    return KvchatError(
        "model", f"{folder} has no {SINGLE} and no {INDEX}", "download the weights into the folder"
    )
