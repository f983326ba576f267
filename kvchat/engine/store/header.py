"""The head of a file of ours: what it is, for which document, and its tensors' names. Imports no
torch.

Layout, that of safetensors: the header's length in 8 bytes (little-endian), the header as JSON, the
tensors' bytes one after the other. Ours end with a tensor `CHECKS` of checksums: the header's, then
each tensor's.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvchat.engine.cache import HOMES
from kvchat.engine.store import FORMAT, Refused

CHECKS = "crc32"
LENGTH = struct.Struct("<Q")
LARGEST = 2**27  # bytes of a header that is worth reading
NOTED: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "method": (str,),
    "budget": (str,),
    "created": (str,),
    "day": (str,),
    "part": (str,),
    "tokens": (int,),
    "full_bytes": (int,),
    "read_seconds": (int, float),
}


@dataclass(frozen=True)
class Header:
    """What stands in front of the tensors, checked when it is read.

    `about` is what was noted for the person, `segments` are kind, span and home (of entries that a
    token chooses among) of every layer's; `names` are in the order of the file, `crc` is of the
    header's bytes.
    """

    metadata: dict[str, str]
    about: dict[str, Any]
    segments: list[list[tuple[str, tuple[int, int], str]]]
    names: tuple[str, ...]
    crc: int

    def require(self, kind: str, fingerprint: str) -> None:
        """Raise Refused unless the file is of this kind, our format, and this fingerprint."""
        if self.metadata.get("kind") != kind:
            raise Refused(f"it is no {kind}")
        if (number := self.metadata.get("format")) != str(FORMAT):
            raise Refused(f"it has format {number}; this kvchat reads format {FORMAT}")
        if self.metadata.get("fingerprint") != fingerprint:
            raise Refused("it belongs to another document, model or method")


def describe(kind: str, fingerprint: str, about: Any, segments: Any = ()) -> dict[str, str]:
    """The metadata that `read` takes apart again; `about` is for the person."""
    return {
        "kind": kind,
        "format": str(FORMAT),
        "fingerprint": fingerprint,
        "segments": json.dumps(segments),
        "about": json.dumps(about),
    }


def read(path: Path) -> Header:
    """The header of a file. Raises Refused if it is damaged or not ours, OSError."""
    if not path.is_file():  # a pipe or a device would never answer
        raise FileNotFoundError(path)
    with path.open("rb") as file:
        start = file.read(LENGTH.size)
        length = LENGTH.unpack(start)[0] if len(start) == LENGTH.size else LARGEST
        if length >= LARGEST:
            raise Refused("it is no safetensors file")
        text = file.read(length)
    try:
        table = json.loads(text)
        metadata = table.pop("__metadata__")
        names = sorted(table, key=lambda name: table[name]["data_offsets"])
        about = _noted(json.loads(metadata["about"]))
        segments = [
            [(str(part["kind"]), _span(part["span"]), _home(part)) for part in layer]
            for layer in json.loads(metadata.get("segments", "[]"))
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Refused("it is no cached document, or its header is damaged") from None
    return Header(metadata, about, segments, tuple(names), zlib.crc32(start + text))


def _noted(given: Any) -> dict[str, Any]:
    """What was noted for the person, each value of its kind. Raises ValueError, TypeError."""
    about: dict[str, Any] = given
    parts, documents = about.get("parts", {}), about.get("documents", [])
    if not isinstance(parts, dict) or not isinstance(documents, list):
        raise TypeError("parts and documents")
    texts = [*parts.items(), *zip(documents, documents, strict=True)]
    if not all(isinstance(text, str) for pair in texts for text in pair):
        raise TypeError("names are text")
    for name, kind in NOTED.items():
        if name in about and type(about[name]) not in kind:
            raise TypeError(name)
    return about


def _home(part: Mapping[str, Any]) -> str:
    home = part.get("home", HOMES[0])
    if home not in HOMES:
        raise ValueError(f"a home of {home!r}")
    return str(home)


def _span(given: Any) -> tuple[int, int]:
    first, end = given
    if not (type(first) is type(end) is int and 0 <= first <= end):
        raise ValueError(f"a span of {given}")
    return first, end
