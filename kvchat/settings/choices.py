"""What the command line reads before it starts: prompts and system text from files, choices."""

import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from kvchat.engine.weights.bits import WEIGHTS
from kvchat.errors import KvchatError
from kvchat.settings.config import Config
from kvchat.terminal.text import clean

CHOICES = {
    "overflow": ("error", "head", "tail", "middle"),
    "loader": ("auto", "text", "html", "epub", "docx", "pdf"),
    "stats": ("off", "short", "long"),
    "keep_full": ("off", "host", "disk"),
    "select": ("document", "question", "instruction"),
    "kv_cache": ("on", "off", "read"),
    "color": ("auto", "always", "never"),
    "weights": WEIGHTS,
    "theme": ("dark", "light"),
    "notify": ("off", "bell", "osc9"),
}


def require_choices(values: Mapping[str, Any]) -> None:
    """Raise KvchatError("usage") for a value that is none of its choices."""
    for name, choices in CHOICES.items():
        value = values.get(name)
        if value is not None and value not in choices:
            flag = f"--{name.replace('_', '-')}"
            close = get_close_matches(value, choices, n=1) or choices
            raise KvchatError(
                "usage",
                f"{flag} {clean(value)!r}: there are {', '.join(choices)}",
                *(f"{flag} {choice}" for choice in close),
            )


def system_text(text: str | None, path: str | None) -> str | None:
    """The system text of `--system` or `--system-file`. Raises KvchatError."""
    if path is None:
        return text
    if text is not None:
        raise KvchatError("usage", "--system and --system-file both give a system text")
    return read(path).strip()


def prompts_of(path: str | None) -> list[str]:
    """The lines of `--prompt-file` that are not empty. Raises KvchatError."""
    if path is None:
        return []
    lines = [line.strip() for line in read(path).splitlines()]
    if not any(lines):
        raise KvchatError("input", f"{clean(path)} has no prompts")
    return [line for line in lines if line]


def read(path: str) -> str:
    """A small text file, or standard input for `-`. Raises KvchatError("input")."""
    try:
        if path == "-":
            return sys.stdin.buffer.read().decode("utf-8")
        return Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise KvchatError("input", f"{clean(path)} cannot be read: {error.strerror}") from None
    except (UnicodeError, RuntimeError) as error:
        raise KvchatError("input", f"{clean(path)} cannot be read: {error}") from None


def method_defaults(spec: str, config: Config) -> list[str]:
    """`key=value` of `[methods.NAME]` for the method of a spec."""
    name = spec.partition(":")[0].partition("@")[0]
    return [f"{key}={value}" for key, value in config.methods.get(name, {}).items()]
