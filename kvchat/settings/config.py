"""config.toml and `KVCHAT_*`: strict, and every value knows where it came from. Imports no torch.

Order: flag, environment, `[models.NAME]`, `[defaults]` or `[ui]`, what the model says, built in.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from platformdirs import user_config_path

from kvchat.errors import KvchatError
from kvchat.terminal.text import WORDS, clean

# Settings of [defaults] and [models.NAME]; `model` stands in [defaults] alone.
SETTINGS: dict[str, type] = {
    "method": str,
    "budget": str,
    "ctx_size": int,
    "overflow": str,
    "prefill_chunk": int,
    "max_tokens": int,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repeat_penalty": float,
    "seed": int,
    "system": str,
    "encoding": str,
    "device": str,
    "dtype": str,
    "weights": str,
    "attention": str,
    "threads": int,
    "tokenizer": str,
    "chat_template": str,
    "mem_limit": str,
    "kv_cache": str,
    "kv_cache_dir": str,
    "keep_full": str,
    "auto_loss": float,
    "select": str,
}
UI: dict[str, type] = {
    "stats": str,
    "markdown": bool,
    "history": bool,
    "save": bool,
    "plain": bool,
    "color": str,
    "theme": str,
    "vi": bool,
    "notify": str,
}
PLACE = {"path": str, "repo": str}


@dataclass(frozen=True)
class Config:
    """The tables of a config.toml."""

    path: Path
    defaults: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ui: Mapping[str, Any] = field(default_factory=dict)
    loaders: Mapping[str, list[str]] = field(default_factory=dict)  # commands by suffix


def config_path() -> Path:
    """Where config.toml is, whether it exists or not."""
    return user_config_path("kvchat") / "config.toml"


def load(path: Path | None = None) -> Config:
    """The config file, or an empty one. Raises KvchatError("usage") with line and nearest name."""
    path = path or config_path()
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return Config(path)
    except (OSError, UnicodeError) as error:
        raise KvchatError("usage", f"{path} cannot be read: {error}") from None
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise KvchatError("usage", f"{path}: {error}") from None
    check = _Checker(path, text)
    check.known("", raw, ("defaults", "models", "methods", "ui", "loaders"))
    for name, table in raw.items():
        check.table(name, table)
    for name in ("models", "methods"):
        for key, table in raw.get(name, {}).items():
            check.table(f"{name}.{key}", table)
    check.values("defaults", raw.get("defaults", {}), {"model": str, **SETTINGS})
    check.values("ui", raw.get("ui", {}), UI)
    for suffix, command in raw.get("loaders", {}).items():
        check.loader(suffix, command)
    for key, table in raw.get("models", {}).items():
        check.values(f"models.{key}", table, PLACE | SETTINGS)
        if len(PLACE.keys() & table.keys()) != 1:
            raise check.error(f"models.{key}", "", f"[models.{key}] needs one of path and repo")
    return Config(path, **raw)


def settle(
    flags: Mapping[str, Any], config: Config, environment: Mapping[str, str] = os.environ
) -> tuple[dict[str, Any], dict[str, str]]:
    """Values and origins: what a flag leaves open (None) comes from elsewhere, or stays out.

    Raises KvchatError("usage") for an environment variable of the wrong type.
    """
    values = {name: value for name, value in flags.items() if value is not None}
    origins = dict.fromkeys(values, "flag")
    sources = [
        (f"[defaults] of {config.path}", config.defaults),
        (f"[ui] of {config.path}", config.ui),
    ]
    from_environment = _environment(environment)
    model = values.get("model") or from_environment.get("model") or config.defaults.get("model")
    if alias := config.models.get(str(model)):
        own = {k: v for k, v in alias.items() if k not in PLACE}
        sources.insert(0, (f"[models.{model}] of {config.path}", own))
    for name, value in from_environment.items():
        if name not in values:
            values[name], origins[name] = value, f"KVCHAT_{name.upper()}"
    for origin, table in sources:
        for name, value in table.items():
            if name not in values:
                values[name], origins[name] = value, origin
    return values, origins


def _environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for name, kind in {"model": str, **SETTINGS, **UI}.items():
        variable = f"KVCHAT_{name.upper()}"
        if (text := environment.get(variable)) is None:
            continue
        try:
            found[name] = WORDS[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            wanted = "on or off" if kind is bool else f"of type {kind.__name__}"
            raise KvchatError("usage", f"{variable}={clean(text)!r} is not {wanted}") from None
    return found


class _Checker:
    """Finds what a config file should not have, and where."""

    def __init__(self, path: Path, text: str):
        self.path, self.lines = path, text.splitlines()

    def table(self, name: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise self.error("", name, f"{name} must be a table: [{name}]")

    def known(self, table: str, found: Mapping[str, Any], names: Any) -> None:
        for key in found:
            if key not in names:
                close = get_close_matches(key, names, n=1)
                hint = (
                    f"; did you mean {close[0]}?" if close else f" (there are {', '.join(names)})"
                )
                where = f" in [{table}]" if table else ""
                raise self.error(table, key, f"unknown key {clean(key)!r}{where}{hint}")

    def values(self, table: str, found: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
        self.known(table, found, kinds)
        for key, value in found.items():
            kind = kinds[key]
            good = isinstance(value, (int, float) if kind is float else kind)
            if not good or (isinstance(value, bool) and kind is not bool):
                raise self.error(table, key, f"{key} = {value!r} is not of type {kind.__name__}")

    def loader(self, suffix: str, command: Any) -> None:
        good = isinstance(command, list) and all(isinstance(part, str) for part in command)
        if not (good and "{}" in command and suffix.startswith(".")):
            example = '".pdf" = ["pdftotext", "-layout", "{}", "-"]'
            raise self.error("loaders", suffix, f"a loader looks like {example}")

    def error(self, table: str, key: str, message: str) -> KvchatError:
        line = self._line(table, key)
        at = f", line {line}" if line else ""
        return KvchatError("usage", f"{self.path}{at}: {message}")

    def _line(self, table: str, key: str) -> int:
        """Line of a key in a table, of the table itself for an empty key; 0 if not found."""
        inside = table == ""
        for number, line in enumerate(self.lines, 1):
            if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line):
                name = header[1].replace('"', "").replace("'", "")
                if (name == table and not key) or (not table and name.split(".")[0] == key):
                    return number
                inside = name == table
            elif inside and key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
                return number
        return 0
