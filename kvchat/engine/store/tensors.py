"""Tensors in a safetensors file: written one by one, mapped back, every byte checked."""

import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kvchat.engine.store import Refused, header
from kvchat.engine.store.atomic import NewFile
from kvchat.engine.store.header import CHECKS, Slot

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


def slot_of(tensor: Tensor) -> Slot:
    """Where a tensor goes in a file."""
    return Slot(NAMES[tensor.dtype], tuple(tensor.shape))


class Writer:
    """Writes the tensors of `slots` into `file`, in their order, one `put` each."""

    def __init__(
        self,
        file: NewFile,
        slots: Mapping[str, Slot],
        metadata: Mapping[str, str],
        stopped: Callable[[], bool] = lambda: False,
    ):
        assert CHECKS not in slots
        checks = Slot("I64", (len(slots) + 1,))
        head = header.pack({**slots, CHECKS: checks}, metadata)
        self._file, self._stopped = file, stopped
        self._left = list(slots.items())
        self._checks = [zlib.crc32(head)]
        file.write(head)

    def put(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor. Raises OSError, and Stopped if the save is to be given up."""
        wanted, slot = self._left.pop(0)
        assert (wanted, slot) == (name, slot_of(tensor)), f"{name} in place of {wanted}: {slot}"
        if self._stopped():
            raise Stopped
        data = _bytes(tensor)
        self._checks.append(zlib.crc32(data))
        self._file.write(data)

    def close(self) -> None:
        """Write the checksums: all tensors are there."""
        assert not self._left, f"not written: {[name for name, _ in self._left][:5]}"
        self._file.write(_bytes(torch.tensor(self._checks)))


def write(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Save tensors to a file that appears when it is whole. Raises OSError, Stopped."""
    # wide values first, so that everything is aligned
    ordered = sorted(tensors, key=lambda name: -tensors[name].element_size())
    slots = {name: slot_of(tensors[name]) for name in ordered}
    with NewFile(path) as file:
        writer = Writer(file, slots, metadata, stopped)
        for name in ordered:
            writer.put(name, tensors[name])
        writer.close()


class Mapped:
    """A file's tensors, mapped into memory: nothing is read before it is used.

    Raises Refused if the file is damaged, OSError if it cannot be opened.
    """

    def __init__(self, path: Path):
        found = header.read(path)
        self.metadata = found.metadata
        try:
            with safe_open(path, framework="pt") as file:
                self.tensors = {name: file.get_tensor(name) for name in found.names}
        except SafetensorError as error:
            raise Refused(f"it is damaged ({str(error).splitlines()[0]})") from None
        checks = self.tensors.pop(CHECKS, None)
        names = found.names[:-1]
        if checks is None or checks.shape != (len(names) + 1,) or found.names[-1] != CHECKS:
            raise Refused("it has no checksums")
        head, *rest = checks.tolist()
        if head != found.crc:
            raise Refused("its header is damaged")
        self._checks = dict(zip(names, rest, strict=True))

    def check(self, names: Iterable[str] | None = None) -> None:
        """Read tensors through once, all by default. Raises Refused if a byte is another."""
        for name in self._checks if names is None else names:
            if zlib.crc32(_bytes(self.tensors[name])) != self._checks[name]:
                raise Refused(f"its tensor {name} is damaged")


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, in the order of the file."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
