"""The safetensors files of a checkpoint: found, opened, and what is in them. Nothing is read but
headers."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kvchat.engine.gguf.tensors import Packed
from kvchat.engine.model.json_values import LFS_MARK, read_json
from kvchat.engine.sizes import DTYPES, ITEM_BYTES
from kvchat.errors import KvchatError
from kvchat.files import MappedFile, is_regular

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FIRST = 200  # characters of a name that are shown
OTHER_FORMATS = {".bin": "pickle", ".pth": "pickle", ".pt": "pickle"}


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint that has not been read: `size` bytes of a file.

    `read()` gives it as it lies in the mapped file; `forget()` gives the memory back until it is
    used again.
    """

    shape: tuple[int, ...]
    size: int
    file: Path
    read: Callable[[], Tensor | Packed]
    forget: Callable[[], None]


def stored(
    folder: Path, opened: ExitStack, ignored: Callable[[str], bool]
) -> Iterator[tuple[str, Stored]]:
    """Every tensor of a folder by name, in the files' order, with the files held open.

    Those that are `ignored` may have any dtype. Raises KvchatError("model").
    """
    for shard in find_shards(folder):
        file = opened.enter_context(_opened(shard))
        mapped = MappedFile(shard)
        begins = _begins(mapped)
        for name in file.keys():  # noqa: SIM118 - not a dict
            header = file.get_slice(name)
            kind, shape = header.get_dtype(), tuple(header.get_shape())
            dtype = DTYPES.get(kind.lower())
            if dtype is None and not ignored(name):
                raise KvchatError(
                    "model",
                    f"{shard}: {name} has dtype {kind}; weights are read as "
                    f"{', '.join(DTYPES).upper()}",
                    "use the original checkpoint in bf16, f16 or f32",
                )
            size = math.prod(shape) * ITEM_BYTES[dtype] if dtype else 0
            read = partial(_read, mapped, begins[name], shape, getattr(torch, dtype or "uint8"))
            yield (
                name,
                Stored(shape, size, shard, read, partial(mapped.give_back, begins[name], size)),
            )


def _begins(mapped: MappedFile) -> dict[str, int]:
    """Where each tensor begins, in bytes of a file whose header the library has checked."""
    length = int.from_bytes(mapped.data[:8], "little")
    header = json.loads(mapped.data[8 : 8 + length])
    header.pop("__metadata__", None)
    return {name: 8 + length + about["data_offsets"][0] for name, about in header.items()}


def _read(mapped: MappedFile, begin: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    count = math.prod(shape)
    return torch.frombuffer(mapped.data, dtype=dtype, count=count, offset=begin).view(shape)


def find_shards(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, all present. Raises KvchatError("model")."""
    if (folder / SINGLE).exists():
        shards = [folder / SINGLE]
    elif (folder / INDEX).exists():
        shards = _indexed(folder)
    else:
        raise _no_weights(folder)
    for shard in shards:
        if not is_regular(shard):
            raise KvchatError("model", f"{shard} is no file", "download the file again")
        try:
            with shard.open("rb") as file:
                begin = file.read(len(LFS_MARK))
        except OSError as error:
            raise KvchatError("model", f"{shard} cannot be read: {error.strerror}") from None
        if begin == LFS_MARK:
            raise KvchatError(
                "model",
                f"{shard} is a {shard.stat().st_size}-byte Git LFS pointer, not weights",
                f"git -C {folder} lfs pull",
            )
    return shards


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
    if outside := [name for name in names if not _is_inside(name)]:
        raise KvchatError(
            "model",
            f"{folder / INDEX} names {len(outside)} of {len(names)} shards that are not in the "
            f"folder: {outside[0][:FIRST]}",
            "download the file again",
        )
    missing = [name for name in names if not is_regular(folder / name)]
    if missing:
        raise KvchatError(
            "model",
            f"{folder}: missing {len(missing)} of {len(names)} shards: "
            f"{', '.join(name[:FIRST] for name in missing[:5])}",
            "download the missing files into the folder",
            missing=missing,
        )
    return [folder / name for name in names]


def _is_inside(name: str) -> bool:
    """Whether the name of a shard leads to a place in the folder; links may lead on from there."""
    path = PurePath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _no_weights(folder: Path) -> KvchatError:
    if files := sorted(folder.glob("*.gguf")):
        return KvchatError(
            "model",
            f"{folder} has no safetensors; {files[0].name} is a checkpoint of its own",
            f"-m {files[0]}",
        )
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
