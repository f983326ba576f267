"""`Budget`: how much of the KV cache the user asked to keep, and what a row of it costs. Imports
no torch."""

import re
from dataclasses import dataclass
from math import ceil, gcd

from kvchat.engine.cache import GROUP
from kvchat.errors import KvchatError

FORMS = "a share of all rows (25%), tokens per KV head (2048) or bytes (1.5GiB)"
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
    """What a budget is shared out over: the rows of a document and the bytes of storing one.

    `heads` are KV heads of size `dim`, `itemsize` the bytes of a value of the model; rows are
    stored in `bits` bits, or as the model has them, each with `beside` bytes of something else.
    """

    tokens: int
    heads: int
    layers: int
    dim: int
    itemsize: int
    bits: int | None = None
    beside: int = 0

    @property
    def full(self) -> int:
        """Rows of a layer."""
        return self.tokens * self.heads

    @property
    def plain_bytes(self) -> int:
        """Key, value and int32 position of a row as the model has it."""
        return 2 * self.dim * self.itemsize + 4 + self.beside

    @property
    def row_bytes(self) -> float:
        """Key, value and position of a stored row.

        Quantised: the codes, and a 16-bit scale and zero for every `GROUP` rows of a key's
        channel and for every group of a value's channels.
        """
        if self.bits is None:
            return self.plain_bytes
        scales = self.dim / GROUP + self.dim / gcd(self.dim, GROUP)
        return 2 * self.dim * self.bits / 8 + 4 * scales + 4 + self.beside

    @property
    def layer_bytes(self) -> int:
        """What a layer holds beside its rows, at most.

        The segment's row ranges, the starts and lengths of the tail's heads (all int32). Quantised,
        up to `GROUP - 1` rows of a head stay as they are, with row ranges of their own.
        """
        beside = 4 * (self.heads + 1) + 8 * self.heads
        if self.bits is None:
            return beside
        more = ceil((GROUP - 1) * self.heads * (self.plain_bytes - self.row_bytes))
        return beside + more + 4 * (self.heads + 1)


@dataclass(frozen=True)
class Budget:
    """What is KEPT: exactly one of a fraction in (0, 1], rows per KV head (a mean), or bytes."""

    fraction: float | None = None
    rows_per_head: int | None = None
    bytes: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """`25%`, `2048`, `2k`, `2K`, `1.5GiB`. Raises KvchatError("usage") for anything else."""
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%|[kK]|[kKmMgG]i?[bB]|[bB])?\s*", text)
        if match is None:
            raise KvchatError("usage", f"{text!r} is not a budget", f"--budget with {FORMS}")
        number, unit = float(match[1]), match[2] or ""
        if unit == "%":
            if not 0 < number <= 100:
                raise KvchatError("usage", f"a budget of {text} is outside 0–100 %", "--budget 25%")
            return cls(fraction=number / 100)
        if unit in ("", "k", "K"):
            rows = number * {"": 1, "k": 1000, "K": 1024}[unit]
            if rows < 1 or rows != int(rows):
                percent = f"{number * 100:g}%"
                raise KvchatError(
                    "usage",
                    f"a budget of {text} is not a whole number of tokens",
                    *([f"--budget {percent}  (a share of all rows)"] if 0 < number < 1 else []),
                    f"--budget with {FORMS}",
                )
            return cls(rows_per_head=int(rows))
        size = int(number * UNITS[unit.lower()])
        if size < 1:
            raise KvchatError("usage", f"a budget of {text} keeps nothing", "--budget 1GiB")
        return cls(bytes=size)

    def rows(self, geometry: Geometry, extra: int = 0) -> int:
        """Rows that one layer may keep, over all its KV heads, of `geometry.full`.

        `extra` bytes beside every row (a bias, a count) are paid from a budget in bytes. A share of
        a document is at least one row per head; KvchatError("usage") if bytes do not suffice for
        that.
        """
        heads, row_bytes = geometry.heads, geometry.row_bytes + extra
        if self.fraction is not None:
            rows = max(round(self.fraction * geometry.full), heads)
        elif self.rows_per_head is not None:
            rows = self.rows_per_head * heads
        else:
            assert self.bytes is not None
            rows = int((self.bytes / geometry.layers - geometry.layer_bytes) // row_bytes)
        if rows < heads:
            least = geometry.layers * ceil(heads * row_bytes + geometry.layer_bytes)
            raise KvchatError(
                "usage",
                f"a budget of {self} keeps {max(rows, 0):,} rows per layer; its {heads} KV heads "
                "need at least one each",
                f"--budget {least}B or more",
                "--budget 25%",
                rows=rows,
                heads=heads,
            )
        return min(rows, geometry.full)

    def of_rows(self, each: int, geometry: Geometry, extra: int = 0) -> "Budget":
        """The least budget of this kind that keeps `each` rows per head."""
        if self.fraction is not None:
            return Budget(fraction=min(1.0, each / geometry.tokens))
        if self.rows_per_head is not None:
            return Budget(rows_per_head=each)
        row_bytes = geometry.row_bytes + extra
        layer = ceil(each * geometry.heads * row_bytes + geometry.layer_bytes)
        return Budget(bytes=geometry.layers * layer)

    def __str__(self) -> str:
        if self.fraction is not None:
            return f"{self.fraction * 100:g}%"
        if self.rows_per_head is not None:
            return str(self.rows_per_head)
        assert self.bytes is not None
        for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if self.bytes >= unit and self.bytes * 100 % unit == 0:
                return f"{self.bytes / unit:g}{name}"
        return f"{self.bytes}B"


DEFAULT_BUDGET = Budget(fraction=0.25)
