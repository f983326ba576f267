"""config.toml and `KVCHAT_*`: strict, and every value knows where it came from. Imports no torch.

Order: flag, environment, `[models.NAME]`, `[defaults]` or `[ui]`, what the model says, built in.
"""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from platformdirs import user_config_path

from kvchat.errors import KvchatError
from kvchat.settings.chat_options import FILE
from kvchat.settings.kinds import TEXT
from kvchat.settings.option import Option
from kvchat.settings.options import OPTIONS, Options
from kvchat.settings.program_options import UI
from kvchat.terminal.text import clean

DEFAULTS = {name: each for name, each in OPTIONS.items() if each.table == FILE}
SETTINGS = {name: each for name, each in DEFAULTS.items() if name != "model"}  # of [models.NAME]
UI_SETTINGS = {name: each for name, each in OPTIONS.items() if each.table == UI}
PLACE = ("path", "repo")


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
        text = path.read_text(encoding="utf-8-sig")
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
    check.values("defaults", raw.get("defaults", {}), DEFAULTS)
    check.values("ui", raw.get("ui", {}), UI_SETTINGS)
    for suffix, command in raw.get("loaders", {}).items():
        check.loader(suffix, command)
    for key, table in raw.get("models", {}).items():
        check.values(f"models.{key}", table, SETTINGS, PLACE)
        if len(table.keys() & {*PLACE}) != 1:
            raise check.error(f"models.{key}", "", f"[models.{key}] needs one of path and repo")
    return Config(path, **raw)


def settle(
    flags: Mapping[str, Any], config: Config, environment: Mapping[str, str] = os.environ
) -> Options:
    """Options with the origin of each: what a flag leaves open (None) comes from elsewhere.

    Raises KvchatError("usage") for a value that is not of its kind.
    """
    read: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def take(origin: str, table: Mapping[str, Any], source: str) -> None:
        for name, value in table.items():
            if name not in read:
                where = source or OPTIONS[name].flag
                read[name], origins[name] = OPTIONS[name].kind.read(where, value), origin

    take("flag", {name: value for name, value in flags.items() if value is not None}, "")
    for name, each in (DEFAULTS | UI_SETTINGS).items():
        if (text := environment.get(each.variable)) is not None:
            take(each.variable, {name: text}, each.variable)
    model = read.get("model", config.defaults.get("model"))
    alias = config.models.get(str(model), {})
    own = {name: value for name, value in alias.items() if name not in PLACE}
    take(f"[models.{model}] of {config.path}", own, "")
    take(f"[defaults] of {config.path}", config.defaults, "")
    take(f"[ui] of {config.path}", config.ui, "")
    return Options(
        **read,
        loaders=config.loaders,
        aliases=config.models,
        method_defaults=config.methods,
        origins=origins,
    )


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

    def values(
        self,
        table: str,
        found: Mapping[str, Any],
        options: Mapping[str, Option],
        texts: Sequence[str] = (),
    ) -> None:
        """Keys must be `options`, whose kinds the values have, or `texts`."""
        self.known(table, found, (*texts, *options))
        for key, value in found.items():
            kind = TEXT if key in texts else options[key].kind
            try:
                if isinstance(value, list | dict):  # a list is what a repeated flag gives
                    text = f"{key} = {value!r:.40} is not {kind.meaning}"
                    raise KvchatError("usage", text)
                kind.read(f"{key} =", value)
            except KvchatError as error:
                raise self.error(table, key, error.message) from None

    def loader(self, suffix: str, command: Any) -> None:
        good = isinstance(command, list) and all(isinstance(part, str) for part in command)
        if not (good and "{}" in command and re.fullmatch(r"\.[^.A-Z]+", suffix)):
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
