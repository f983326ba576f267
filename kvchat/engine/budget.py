"""`Budget`: how much of the KV cache the user asked to keep. Imports no torch."""

import re
from dataclasses import dataclass

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

    def rows(self, tokens: int, heads: int, layers: int, row_bytes: int) -> int:
        """Rows that one layer may keep, over all its KV heads, of `tokens * heads`.

        `row_bytes` is what one kept row costs: key, value and its position. A share of a document
        is at least one row per head; KvchatError("usage") if bytes do not suffice for that.
        """
        full = tokens * heads
        # of a layer, int32: row ranges of the segment, starts and lengths of the tail's heads
        overhead = 4 * (heads + 1) + 8 * heads
        if self.fraction is not None:
            rows = max(round(self.fraction * full), heads)
        elif self.rows_per_head is not None:
            rows = self.rows_per_head * heads
        else:
            assert self.bytes is not None
            rows = int((self.bytes / layers - overhead) // row_bytes)
        if rows < heads:
            least = layers * (heads * row_bytes + overhead)
            raise KvchatError(
                "usage",
                f"a budget of {self} keeps {max(rows, 0):,} rows per layer; its {heads} KV heads "
                "need at least one each",
                f"--budget {least}B or more",
                "--budget 25%",
                rows=rows,
                heads=heads,
            )
        return min(rows, full)

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
