"""Reads the header of a GGUF file: metadata and where the tensors are. No torch.

The file is mapped. Arrays are walked over and read only when somebody asks: a vocabulary has
hundreds of thousands of entries, and most callers want a handful of numbers.
"""

import math
import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvchat.engine.gguf import MAGIC
from kvchat.engine.gguf.blocks import BLOCKS, OTHERS, Block
from kvchat.errors import KvchatError

VERSIONS = (2, 3)
SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
AGAIN = "download the file again"
LFS_MARK = b"version https://git-lfs"
MOST = 2**20  # tensors or fields; more are a damaged file
# of a metadata value by its number: struct's letter; 8 is a string, 9 an array
SCALARS = dict(enumerate("BbHhIif?", start=0)) | {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a file: `shape` is torch's (rows first), `offset` and `size` are bytes."""

    name: str
    block: Block
    shape: tuple[int, ...]
    path: Path
    offset: int
    size: int


class GGUF(Mapping[str, Any]):
    """Metadata by name, arrays as tuples, and `tensors`; a split checkpoint is one of them.

    Raises KvchatError("model") for a file that is damaged, cut short or of another version.
    """

    def __init__(self, path: Path):
        self.path = path
        first = _Part(path)
        self.paths = parts_of(path, first.fields.get("split.count"))
        others = [_Part(other) for other in self.paths if other != path]
        self._fields = first.fields
        if self.paths[0] != path:  # the first part has all of the metadata
            self._fields = next(part for part in others if part.path == self.paths[0]).fields
        self.tensors = {info.name: info for part in (first, *others) for info in part.tensors}

    def __getitem__(self, name: str) -> Any:
        value = self._fields[name]
        if isinstance(value, _Array):
            value = self._fields[name] = value.read()
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.paths)


def parts_of(path: Path, count: int | None = None) -> list[Path]:
    """All files of a split checkpoint, or the one. Raises KvchatError("model") if some are missing.

    `count` is how many the file itself says there are.
    """
    found = SPLIT.fullmatch(path.name)
    if found is None:
        if count is not None and count > 1:
            raise KvchatError(
                "model",
                f"{path} is a part of {count} files; its name must end in "
                f"-00001-of-{count:05}.gguf",
                "give the files the names that they were published with",
            )
        return [path]
    names = [f"{found[1]}-{n:05}-of-{found[3]}.gguf" for n in range(1, int(found[3]) + 1)]
    paths = [path.with_name(name) for name in names]
    missing = [each.name for each in paths if not each.is_file()]
    if missing:
        raise KvchatError(
            "model",
            f"{path.parent}: missing {len(missing)} of {len(paths)} parts: "
            f"{', '.join(missing[:5])}",
            "download the missing files into the folder",
            missing=missing,
        )
    return paths


def header_of(path: Path) -> bytes:
    """The bytes of a file in front of its first tensor: all metadata, tokenizer included."""
    places = [info.offset for info in GGUF(path).tensors.values() if info.path == path]
    with path.open("rb") as file:
        return file.read(min(places, default=path.stat().st_size))


class _Array:
    """An array of metadata that has been walked over and not read."""

    def __init__(self, data: mmap.mmap, kind: int, place: int, count: int):
        self.data, self.kind, self.place, self.count = data, kind, place, count

    def read(self) -> tuple[Any, ...]:
        if self.kind == STRING:
            return tuple(_strings(self.data, self.place, self.count))
        return struct.unpack_from(f"<{self.count}{SCALARS[self.kind]}", self.data, self.place)


class _Short(Exception):
    """The header goes on behind the end of the file."""


class _Part:
    """One file: its fields and tensors."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # nothing can be mapped
            raise KvchatError("model", f"{path} is empty (0 bytes)", AGAIN) from None
        except OSError as error:
            raise KvchatError("model", f"{path} cannot be read as GGUF: {error}") from None
        if self._data[: len(LFS_MARK)] == LFS_MARK:
            raise KvchatError(
                "model",
                f"{path} is a {len(self._data)}-byte Git LFS pointer, not weights",
                f"git -C {path.parent} lfs pull",
            )
        if self._data[:4] != MAGIC:
            raise KvchatError(
                "model",
                f"{path} is not a GGUF file: it begins with the bytes {self._data[:4].hex(' ')}, "
                f"a GGUF file with {MAGIC.hex(' ')}",
                AGAIN,
            )
        self._place = 4
        try:
            version = self._scalar("I")
            if version not in VERSIONS:
                swapped = struct.unpack(">I", struct.pack("<I", version))[0]
                what = "written for big-endian machines" if swapped in VERSIONS else "not supported"
                raise KvchatError(
                    "model",
                    f"{path}: GGUF version {min(version, swapped)} is {what} "
                    f"(supported: {', '.join(map(str, VERSIONS))}, little-endian)",
                    "download a newer file of the model",
                )
            tensors, fields = self._count(), self._count()
            self.fields: dict[str, Any] = {}
            for _ in range(fields):
                name = self._string()
                self.fields[name] = self._value()
            infos = [self._tensor() for _ in range(tensors)]
        except (_Short, struct.error) as error:
            raise KvchatError(
                "model",
                f"{path} is cut short or damaged: its header does not end within the file's "
                f"{len(self._data):,} bytes ({error})",
                AGAIN,
            ) from None
        except (ValueError, KeyError, IndexError, OverflowError) as error:
            raise KvchatError(
                "model",
                f"{path} is damaged: its header cannot be read at byte {self._place:,} ({error})",
                AGAIN,
            ) from None
        self.tensors = self._placed(infos)

    def _placed(self, infos: list[tuple[str, int, tuple[int, ...], int]]) -> list[TensorInfo]:
        alignment = self.fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
            raise KvchatError("model", f"{self.path} is damaged: an alignment of {alignment!r}")
        begin = -(-self._place // alignment) * alignment
        placed, end = [], len(self._data)
        for name, kind, shape, offset in infos:
            if kind not in BLOCKS:
                known = ", ".join(block.name for block in BLOCKS.values())
                raise KvchatError(
                    "model",
                    f"{self.path}: {name} is stored as {OTHERS.get(kind, f'type {kind}')}, "
                    f"which is not supported (supported: {known})",
                    "download a Q4_K_M or Q8_0 file of the model",
                )
            block, values = BLOCKS[kind], math.prod(shape)
            if not shape or shape[-1] % block.values:
                raise KvchatError(
                    "model",
                    f"{self.path} is damaged: {name} {list(shape)} does not divide into blocks "
                    f"of {block.values} values",
                )
            size = values // block.values * block.size
            if begin + offset + size > end:
                raise KvchatError(
                    "model",
                    f"{self.path} is cut short: {name} ends at byte {begin + offset + size:,}, "
                    f"the file at {end:,}",
                    AGAIN,
                )
            placed.append(TensorInfo(name, block, shape, self.path, begin + offset, size))
        return placed

    def _scalar(self, letter: str) -> Any:
        (value,) = struct.unpack_from(f"<{letter}", self._data, self._place)
        self._place += struct.calcsize(f"<{letter}")
        return value

    def _count(self) -> int:
        count: int = self._scalar("Q")
        if count > MOST:
            raise ValueError(f"{count:,} entries")
        return count

    def _string(self) -> str:
        length = self._scalar("Q")
        if length > len(self._data) - self._place:
            raise _Short(f"a text of {length:,} bytes")
        text = self._data[self._place : self._place + length]
        self._place += length
        return text.decode("utf-8", "replace")

    def _value(self) -> Any:
        kind = self._scalar("I")
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._scalar(SCALARS[kind])
        kind, count = self._scalar("I"), self._scalar("Q")
        place = self._place
        if count > len(self._data) - place:  # no value has less than a byte
            raise _Short(f"an array of {count:,} values")
        self._place = (
            _walked(self._data, place, count)
            if kind == STRING
            else place + count * struct.calcsize(f"<{SCALARS[kind]}")
        )
        if self._place > len(self._data):
            raise _Short(f"an array of {count:,} values")
        return _Array(self._data, kind, place, count)

    def _tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        name, dimensions = self._string(), self._scalar("I")
        if dimensions > 4:
            raise ValueError(f"{dimensions} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(dimensions))
        return name, self._scalar("I"), shape[::-1], self._scalar("Q")


def _walked(data: mmap.mmap, place: int, count: int) -> int:
    """Where an array of `count` strings ends."""
    read = struct.Struct("<Q").unpack_from
    for _ in range(count):
        place += 8 + read(data, place)[0]
    return place


def _strings(data: mmap.mmap, place: int, count: int) -> Iterator[str]:
    read = struct.Struct("<Q").unpack_from
    for _ in range(count):
        begin = place + 8
        place = begin + read(data, place)[0]
        yield data[begin:place].decode("utf-8", "replace")
