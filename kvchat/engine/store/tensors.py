"""Tensors in a safetensors file: written one by one, mapped back, every byte checked."""

import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kvchat.engine.store import Refused, header
from kvchat.engine.store.atomic import NewFile
from kvchat.engine.store.header import CHECKS, LENGTH

NAMES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.bool: "BOOL",
}


class Stopped(Exception):
    """A save was given up."""


class Writer:
    """Writes tensors like those of `slots` into `file`, in their order, one `put` each.

    safetensors' own writer wants all tensors at once; a layer's are freed before the next is there.
    """

    def __init__(
        self,
        file: NewFile,
        slots: Mapping[str, Tensor],
        metadata: Mapping[str, str],
        stopped: Callable[[], bool] = lambda: False,
    ):
        assert CHECKS not in slots
        checks = torch.empty(len(slots) + 1, dtype=torch.int64, device="meta")
        head = _head({**slots, CHECKS: checks}, metadata)
        self._file, self._stopped = file, stopped
        self._left = [(name, like.dtype, like.shape) for name, like in slots.items()]
        self._checks = [zlib.crc32(head)]
        file.write(head)

    def put(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor. Raises OSError, and Stopped if the save is to be given up."""
        wanted = self._left.pop(0)
        assert wanted == (name, tensor.dtype, tensor.shape), f"{name} in place of {wanted}"
        if self._stopped():
            raise Stopped
        data = _bytes(tensor)
        self._checks.append(zlib.crc32(data))
        self._file.write(data)

    def close(self) -> None:
        """Write the checksums: all tensors are there."""
        assert not self._left, f"not written: {self._left[:5]}"
        self._file.write(_bytes(torch.tensor(self._checks)))


def write(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Save tensors to a file that appears when it is whole. Raises OSError, Stopped."""
    ordered = aligned(tensors)
    with NewFile(path) as file:
        writer = Writer(file, ordered, metadata, stopped)
        for name, tensor in ordered.items():
            writer.put(name, tensor)
        writer.close()


def aligned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Wide values first, so that every tensor of a file is aligned."""
    return dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))


class Mapped:
    """A file's tensors, mapped into memory: nothing is read before it is used.

    Raises Refused if the file is damaged, OSError if it cannot be opened.
    """

    def __init__(self, path: Path):
        self.header = header.read(path)
        *names, last = self.header.names or ("",)
        try:
            with safe_open(path, framework="pt") as file:
                self.tensors = {name: file.get_tensor(name) for name in self.header.names}
        except SafetensorError as error:
            raise Refused(f"it is damaged ({str(error).splitlines()[0]})") from None
        checks = self.tensors.pop(CHECKS, None)
        if checks is None or checks.shape != (len(names) + 1,) or last != CHECKS:
            raise Refused("it has no checksums")
        head, *rest = checks.tolist()
        if head != self.header.crc:
            raise Refused("its header is damaged")
        self._checks = dict(zip(names, rest, strict=True))

    def check(self, names: Iterable[str] | None = None) -> None:
        """Read tensors through once, all by default. Raises Refused if a byte is another."""
        for name in self._checks if names is None else names:
            if zlib.crc32(_bytes(self.tensors[name])) != self._checks[name]:
                raise Refused(f"its tensor {name} is damaged")


def _head(slots: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Length and header of a file that holds tensors like these in this order."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    for name, like in slots.items():
        place = [begin, begin + like.nbytes]
        table[name] = {"dtype": NAMES[like.dtype], "shape": like.shape, "data_offsets": place}
        begin += like.nbytes
    text = json.dumps(table).encode()
    text += b" " * (-(LENGTH.size + len(text)) % 64)  # tensors begin aligned
    return LENGTH.pack(len(text)) + text


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, in the order of the file."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
