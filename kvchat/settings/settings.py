"""What `/set` changes: how answers are drawn and shown. Each value knows where it came from."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any

from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.sizes import MAX_TOKENS
from kvchat.errors import KvchatError

STATS = ("off", "short", "long")
THEMES = ("dark", "light")
SAMPLING = tuple(f.name for f in fields(Sampling))


@dataclass(frozen=True)
class Settings:
    """How answers are drawn and shown; `origins` says where a value came from."""

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = MAX_TOKENS
    stop: tuple[str, ...] = ()
    stats: str = "short"
    markdown: bool = True
    theme: str = THEMES[0]
    origins: Mapping[str, str] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """Every setting by its name."""
        rest = {"max_tokens": self.max_tokens, "stop": list(self.stop)}
        shown = {"stats": self.stats, "markdown": self.markdown, "theme": self.theme}
        return asdict(self.sampling) | rest | shown

    def changed(self, name: str, value: Any, origin: str) -> "Settings":
        """The same with one other value. Raises KvchatError("usage")."""
        origins = {**self.origins, name: origin}
        if name in SAMPLING:
            sampling = replace(self.sampling, **{name: value})
            return replace(self, sampling=sampling, origins=origins)
        return replace(self, **{name: value}, origins=origins)


def _number(text: str) -> float:
    return float(text)


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _switch(text: str) -> bool:
    return {"on": True, "off": False, "true": True, "false": False}[text.lower()]


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError
        return text

    return read


def _texts(text: str) -> tuple[str, ...]:
    """`A`, or several as `A, B`; `off` for none; `\\n` is a line break."""
    parts = [] if text == "off" else [part.strip() for part in text.split(",")]
    return tuple(part.replace("\\n", "\n") for part in parts if part)


# What a value may be, and how it is read.
KEYS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "temperature": ("a number, 0 is greedy", _number),
    "top_k": ("a whole number, 0 is off", int),
    "top_p": ("a number above 0, 1 is off", _number),
    "min_p": ("a number, 0 is off", _number),
    "repeat_penalty": ("a number, 1 is off", _number),
    "seed": ("a whole number", int),
    "max_tokens": ("a whole number, at least 1", _count),
    "stop": ("texts with commas between, or off", _texts),
    "stats": (", ".join(STATS), _one_of(STATS)),
    "markdown": ("on or off", _switch),
    "theme": (" or ".join(THEMES), _one_of(THEMES)),
}


def find_key(name: str) -> str:
    """The setting that `name` is, or begins. Raises KvchatError("usage")."""
    found = [key for key in KEYS if key == name] or [key for key in KEYS if key.startswith(name)]
    if len(found) == 1:
        return found[0]
    close = found or get_close_matches(name, KEYS, n=1)
    raise KvchatError("usage", f"no setting {name!r}", *(f"/set {key}" for key in close or KEYS))


def set_value(settings: Settings, name: str, text: str) -> Settings:
    """The settings after `/set name text`. Raises KvchatError("usage")."""
    meaning, parse = KEYS[name]
    try:
        return settings.changed(name, parse(text), "/set")
    except (ValueError, KeyError, OverflowError):
        raise KvchatError("usage", f"{name}: {text!r} is not {meaning}") from None


def shown(value: Any) -> str:
    """A value as `/set` takes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return ", ".join(text.replace("\n", "\\n") for text in value) or "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
