"""`Budget`: how much of the KV cache the user asked to keep, and what an entry of it costs."""

import re
from dataclasses import dataclass
from math import ceil, gcd, isinf

from kvchat.engine.cache import GROUP
from kvchat.errors import KvchatError

FORMS = "a share of all entries (25%), tokens per KV head (2048) or bytes (1.5GiB)"
UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}


@dataclass(frozen=True)
class Geometry:
    """What a budget is shared out over: the entries of a document and the bytes of storing one.

    `heads` are KV heads of size `dim`, `itemsize` the bytes of a value of the model; entries are
    stored in `bits` bits, 16 for as the model has them, but for the last `residual` ones of a
    head. With `biased` those that are stored as the model has them have a bias.
    """

    tokens: int
    heads: int
    layers: int
    dim: int
    itemsize: int
    bits: int = 16
    residual: int = 0
    biased: bool = False

    @property
    def full(self) -> int:
        """Entries of a layer."""
        return self.tokens * self.heads

    @property
    def plain_bytes(self) -> int:
        """Key, value and int32 position of an entry as the model has it, and its bias in fp32."""
        return 2 * self.dim * self.itemsize + 4 + 4 * self.biased

    @property
    def entry_bytes(self) -> float:
        """Key, value and position of a stored entry.

        Quantized: the codes, and a 16-bit scale and zero for every `GROUP` entries of a key's
        channel and for every group of a value's channels.
        """
        if self.bits == 16:
            return self.plain_bytes
        scales = self.dim / GROUP + self.dim / gcd(self.dim, GROUP)
        return 2 * self.dim * self.bits / 8 + 4 * scales + 4

    @property
    def layer_bytes(self) -> int:
        """What a layer needs beside its entries, at most.

        The segment's entry ranges, the starts and lengths of the tail's heads (all int32).
        Quantized, `residual` entries of a head stay as they are and up to `GROUP - 1` more, with
        entry ranges of their own.
        """
        beside = 4 * (self.heads + 1) + 8 * self.heads
        if self.bits == 16:
            return beside
        whole = (self.residual + GROUP - 1) * self.heads
        return beside + ceil(whole * (self.plain_bytes - self.entry_bytes)) + 4 * (self.heads + 1)


@dataclass(frozen=True)
class Budget:
    """What is KEPT: exactly one of a fraction in (0, 1], entries per KV head (a mean), or bytes."""

    fraction: float | None = None
    entries_per_head: int | None = None
    bytes: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """`25%`, `2048`, `2k`, `2K`, `1.5GiB`. Raises KvchatError("usage") for anything else."""
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%|[kK]|[kKmMgG]i?[bB]|[bB])?\s*", text)
        if match is None or isinf(float(match[1])):
            raise KvchatError("usage", f"{text!r:.40} is not a budget", f"--budget with {FORMS}")
        number, unit = float(match[1]), match[2] or ""
        if unit == "%":
            if not 0 < number <= 100:
                raise KvchatError("usage", f"a budget of {text} is outside 0–100 %", "--budget 25%")
            return cls(fraction=number / 100)
        if unit in ("", "k", "K"):
            entries = number * {"": 1, "k": 1000, "K": 1024}[unit]
            if entries < 1 or entries != int(entries):
                percent = f"{number * 100:g}%"
                raise KvchatError(
                    "usage",
                    f"a budget of {text} is not a whole number of tokens",
                    *([f"--budget {percent}  (a share of all entries)"] if 0 < number < 1 else []),
                    f"--budget with {FORMS}",
                )
            return cls(entries_per_head=int(entries))
        size = int(number * UNITS[unit.lower()])
        if size < 1:
            raise KvchatError("usage", f"a budget of {text} keeps nothing", "--budget 1GiB")
        return cls(bytes=size)

    def entries(self, geometry: Geometry, extra: int = 0) -> int:
        """Entries that one layer may keep, over all its KV heads, of `geometry.full`.

        `extra` bytes beside every entry (a bias, a count) are paid from a budget in bytes. A share
        of a document is at least one entry per head; KvchatError("usage") if bytes do not suffice
        for that.
        """
        heads, entry_bytes = geometry.heads, geometry.entry_bytes + extra
        if self.fraction is not None:
            entries = max(round(self.fraction * geometry.full), heads)
        elif self.entries_per_head is not None:
            entries = self.entries_per_head * heads
        else:
            assert self.bytes is not None
            entries = int((self.bytes / geometry.layers - geometry.layer_bytes) // entry_bytes)
        if entries < heads:
            least = geometry.layers * ceil(heads * entry_bytes + geometry.layer_bytes)
            raise KvchatError(
                "usage",
                f"a budget of {self} keeps {max(entries, 0):,} entries per layer; "
                f"its {heads} KV heads need at least one each",
                f"--budget {least}B or more",
                "--budget 25%",
                entries=entries,
                heads=heads,
            )
        return min(entries, geometry.full)

    def of_entries(self, each: int, geometry: Geometry, extra: int = 0) -> "Budget":
        """The least budget of this kind that keeps `each` entries per head."""
        if self.fraction is not None:
            return Budget(fraction=min(1.0, each / geometry.tokens))
        if self.entries_per_head is not None:
            return Budget(entries_per_head=each)
        entry_bytes = geometry.entry_bytes + extra
        layer = ceil(each * geometry.heads * entry_bytes + geometry.layer_bytes)
        return Budget(bytes=geometry.layers * layer)

    def __str__(self) -> str:
        if self.fraction is not None:
            return f"{self.fraction * 100:g}%"
        if self.entries_per_head is not None:
            return str(self.entries_per_head)
        assert self.bytes is not None
        for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if self.bytes >= unit and self.bytes * 100 % unit == 0:
                return f"{self.bytes / unit:g}{name}"
        return f"{self.bytes}B"


DEFAULT_BUDGET = Budget(fraction=0.25)
