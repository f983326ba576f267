"""How an option is declared: a field of a dataclass, with everything that is known about it.

The command line, the environment, config.toml, `/set`, a saved chat and the guide's table are all
read from these declarations.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from kvchat.settings.kinds import TEXT, Kind

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """One option. `table` is its place in config.toml, empty if it has none there and in the
    environment; `live` ones can be changed by `/set` and stay with a saved chat.

    `many`: it may be given several times. `common`: the short help of kvchat shows it.
    """

    flags: tuple[str, ...]
    help: str
    panel: str
    kind: Kind = TEXT
    table: str = ""
    live: bool = False
    many: bool = False
    common: bool = False
    name: str = ""

    @property
    def flag(self) -> str:
        """The long flag, as errors name it."""
        return max(self.flags, key=len).partition("/")[0]

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return f"KVCHAT_{self.name.upper()}"


def option(
    flags: str, panel: str, help: str, kind: Kind = TEXT, table: str = "", **about: Any
) -> Any:
    """A field of a settings dataclass that is an option: its flags, with spaces between, and what
    `Option` has; `default` is the field's."""
    many = about.setdefault("many", kind.listed)
    default = about.pop("default", () if many else kind.unset)
    metadata = {"option": Option(tuple(flags.split()), help, panel, kind, table, **about)}
    return field(default=default, metadata=metadata)


def options_of(settings: type) -> Mapping[str, Option]:
    """The options of a settings dataclass by name, in their order."""
    return {
        each.name: replace(each.metadata["option"], name=each.name)
        for each in fields(settings)
        if "option" in each.metadata
    }


def shared(settings: type, name: str, **about: Any) -> Any:
    """A field that is declared as the option `name` of another settings dataclass.

    `default` and what `Option` has may differ.
    """
    there = next(each for each in fields(settings) if each.name == name)
    default = about.pop("default", there.default)
    return field(default=default, metadata={"option": replace(there.metadata["option"], **about)})


def read_all(settings: type[T], given: Mapping[str, Any]) -> T:
    """The settings of flags as they were typed; lists are lists. Raises KvchatError("usage")."""
    values: dict[str, Any] = {}
    for each in fields(settings):  # type: ignore[arg-type]
        option, value = each.metadata["option"], given.get(each.name)
        found = each.default if value is None else option.kind.read(option.flag, value)
        values[each.name] = list(found) if isinstance(found, tuple) else found
    return settings(**values)
