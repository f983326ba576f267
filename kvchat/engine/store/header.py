"""The head of a safetensors file: names, shapes, metadata. Imports no torch.

Layout: the header's length in 8 bytes (little-endian), the header as JSON, the tensors' bytes one
after the other. Ours end with a tensor `CHECKS` of checksums: the header's, then each tensor's.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from kvchat.engine.store import Refused

CHECKS = "crc32"
LENGTH = struct.Struct("<Q")
LARGEST = 2**27  # bytes of a header that is worth reading
BYTES = {
    **dict.fromkeys(("F64", "I64"), 8),
    **dict.fromkeys(("F32", "I32"), 4),
    **dict.fromkeys(("BF16", "F16", "I16"), 2),
    **dict.fromkeys(("U8", "I8", "BOOL"), 1),
}


@dataclass(frozen=True)
class Slot:
    """A tensor in a file: its dtype by safetensors' name, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return BYTES[self.dtype] * prod(self.shape)


def pack(slots: Mapping[str, Slot], metadata: Mapping[str, str]) -> bytes:
    """Length and header of a file that holds these tensors in this order."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    for name, slot in slots.items():
        end = begin + slot.nbytes
        table[name] = {"dtype": slot.dtype, "shape": slot.shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(table).encode()
    text += b" " * (-(LENGTH.size + len(text)) % 64)  # tensors begin aligned
    return LENGTH.pack(len(text)) + text


@dataclass(frozen=True)
class Header:
    """What stands in front of the tensors; `crc` is of its bytes."""

    metadata: dict[str, str]
    names: tuple[str, ...]  # in the order of the file
    crc: int


def read(path: Path) -> Header:
    """The header of a file. Raises Refused, OSError."""
    with path.open("rb") as file:
        start = file.read(LENGTH.size)
        length = LENGTH.unpack(start)[0] if len(start) == LENGTH.size else LARGEST
        if length >= LARGEST:
            raise Refused("it is no safetensors file")
        text = file.read(length)
    try:
        table = json.loads(text)
        metadata = table.pop("__metadata__", {})
        names = sorted(table, key=lambda name: table[name]["data_offsets"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Refused("its header is damaged") from None
    return Header(metadata, tuple(names), zlib.crc32(start + text))
