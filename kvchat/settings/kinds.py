"""What a value of an option may be, read alike from a flag, the environment, config.toml and
`/set`."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any

from kvchat.engine.budget import UNITS
from kvchat.errors import KvchatError
from kvchat.terminal.text import WORDS, clean


@dataclass(frozen=True)
class Kind:
    """A kind of value: `parse` reads text or raises ValueError, `native` are further types.

    With `listed`, `parse` reads all texts of a repeated flag together. `unset` is the value where
    nothing is given.
    """

    meaning: str
    parse: Callable[[Any], Any]
    metavar: str = "TEXT"
    native: tuple[type, ...] = ()
    choices: tuple[str, ...] = ()
    listed: bool = False
    unset: Any = None

    def read(self, source: str, value: Any) -> Any:
        """A value from `source` (`--seed`, `KVCHAT_SEED`, …). Raises KvchatError("usage")."""
        try:
            if isinstance(value, list | tuple):  # of a repeated flag, or of a saved chat
                return self.parse(value) if self.listed else tuple(value)
            if not isinstance(value, str) and type(value) not in self.native:
                raise ValueError
            return self.parse(value if isinstance(value, str) else str(value).lower())
        except (ValueError, KeyError, OverflowError):
            raise KvchatError(
                "usage",
                f"{source} {clean(shown(value))[:80]!r} is not {self.meaning}",
                *(f"{source} {choice}" for choice in self.choices),
            ) from None


def number(least: float, most: float | None = None, above: bool = False) -> Kind:
    """A real number from `least` on, or `above` it, up to `most`."""

    def parse(text: str) -> float:
        found = float(text)
        if not isfinite(found):
            raise ValueError
        if not (found > least if above else found >= least) or (most is not None and found > most):
            raise ValueError
        return found

    bound = f"{'above' if above else 'of at least'} {least:g}"
    upper = "" if most is None else f" and at most {most:g}"
    return Kind(f"a number {bound}{upper}", parse, "X", (int, float))


def whole(least: int, most: int) -> Kind:
    """A whole number from `least` to `most`."""

    def parse(text: str) -> int:
        if not least <= (found := int(text)) <= most:
            raise ValueError
        return found

    return Kind(f"a whole number from {least:,} to {most:,}", parse, "N", (int,))


def tokens(least: int = 1) -> Kind:
    """A number of tokens: `4096`, `32k` (thousands), `32K` (1,024 each)."""

    def parse(text: str) -> int:
        match = re.fullmatch(r"(\d{1,9})([kK]?)", text)
        found = int(match[1]) * {"": 1, "k": 1000, "K": 1024}[match[2]] if match else -1
        if found < least:
            raise ValueError
        return found

    return Kind(f"a number of tokens (8192, 32k, 32K) of {least} or more", parse, "N", (int,))


def _bytes(text: str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    count = float(match[1]) if match else 0.0
    unit = match[2].lower() if match else "?"
    if unit not in UNITS or (count and not unit):
        raise ValueError
    return int(count * UNITS[unit])


def one_of(*choices: str) -> Kind:
    """One of a few words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError
        return text

    return Kind(f"one of {', '.join(choices)}", parse, "NAME", (int,), choices)


def _cascade(text: str) -> str:
    match = re.fullmatch(r"cascade:(\d{1,2})x(\d{1,6})", text)
    if text != "off" and not (match and 2 <= int(match[1]) <= 16 and int(match[2]) >= 16):
        raise ValueError
    return text


def _texts(text: str) -> tuple[str, ...]:
    parts = [] if text == "off" else [part.strip() for part in text.split(",")]
    return tuple(part.replace("\\n", "\n") for part in parts if part)


TEXT = Kind("text", str)
PATH = Kind("a path", str, "PATH")
SIZE = Kind("a size (24GiB)", _bytes, "SIZE")
SWITCH = Kind(
    "on or off", lambda text: WORDS[text.lower()], "", (bool,), ("on", "off"), unset=False
)
TAIL = Kind(
    "cascade:LEVELSxENTRIES, 2 to 16 levels of 16 entries or more, or off",
    _cascade,
    "cascade:4x512",
    choices=("cascade:4x512", "off"),
)
TEXTS = Kind("texts with commas between, or off", _texts)


def shown(value: Any) -> str:
    """A value as it can be typed."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return ", ".join(text.replace("\n", "\\n") for text in value) or "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
