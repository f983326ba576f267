"""Small text files that options name: questions, system prompt, chat template."""

import sys
from collections.abc import Sequence
from pathlib import Path

from kvchat.errors import KvchatError
from kvchat.settings.options import Options
from kvchat.terminal.text import clean


def system_prompt(options: Options) -> str:
    """The text of `--system` or `--system-file`. Raises KvchatError."""
    if options.system_file is None:
        return options.system
    if options.origins.get("system") == "flag":
        raise KvchatError("usage", "--system and --system-file both give a system prompt")
    return read(options.system_file).strip()


def prompts_of(path: str | None) -> Sequence[str]:
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
            return sys.stdin.buffer.read().decode("utf-8-sig")
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except OSError as error:
        raise KvchatError("input", f"{clean(path)} cannot be read: {error.strerror}") from None
    except (UnicodeError, RuntimeError) as error:
        raise KvchatError("input", f"{clean(path)} cannot be read: {error}") from None
