"""The text of a method (its spec): `adakv`, `adakv:window=16,floor=0.3`, `adakv@preset:budget=20%`.

Reads it (`parse_spec`), checks it, and writes it (`spec_of`), all without torch: options are known
from the table. `build.parse_method` makes the method itself.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NamedTuple

from kvchat.engine.budget import Budget
from kvchat.engine.methods import METHODS
from kvchat.engine.methods.needs import Chosen
from kvchat.engine.methods.options import EVERYTHING, Stored
from kvchat.errors import KvchatError

TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
# Chat logs of earlier versions name these options, at values that change nothing.
RETIRED = {
    "demote=1.0": ("kvzip", "kvzip+", "askall"),
    "sigma=mean_dist": ("kvmerger",),
    "score=column": ("kvmerger",),
    "window=64": ("kvmerger",),
}


@dataclass(frozen=True)
class Spec:
    """A method as a text names it: its options as they are set.

    `values` has every option, defaults and presets included; `given` names those that the text
    itself sets.
    """

    name: str
    values: dict[str, Any]
    given: frozenset[str]

    @property
    def budget(self) -> Budget:
        """What is kept; everything for a method without a budget."""
        found: Budget = self.values.get("budget", EVERYTHING)
        return found


class Option(NamedTuple):
    """An option of a method: its default, and what it does."""

    name: str
    default: Any
    help: str


def split_spec(text: str) -> tuple[str, str, list[str]]:
    """Name, preset and `key=value` pairs of a spec, as they stand there."""
    head, _, inline = text.partition(":")
    name, _, preset = (part.strip() for part in head.partition("@"))
    return name, preset, [pair.strip() for pair in inline.split(",") if pair.strip()]


def method_name(text: str) -> str:
    """The table key that a spec begins with. Raises KvchatError("usage") if there is none."""
    name, _, _ = split_spec(text)
    if name not in METHODS:
        raise KvchatError(
            "usage",
            f"unknown method {name!r}; there are {', '.join(METHODS)}",
            *(f"--method {close}" for close in get_close_matches(name, METHODS, n=1)),
            "kvchat methods",
        )
    return name


def load(name: str) -> Any:
    """The class of a method in the table."""
    module, cls = METHODS[name].path.split(":")
    return getattr(import_module(module), cls)


def options_class(name: str) -> Any:
    """The dataclass that declares a method's options: from the table, or the method's own."""
    return METHODS[name].options or load(name)


def options(name: str) -> dict[str, Option]:
    """The options of a method by name, how entries are stored last."""
    last = {field.name for field in fields(Stored)}
    return {
        field.name: Option(field.name, field.default, field.metadata["rule"].help)
        for field in sorted(fields(options_class(name)), key=lambda each: each.name in last)
    }


def presets(name: str) -> dict[str, dict[str, Any]]:
    """Named settings of a method: option values by name of the preset."""
    found: dict[str, dict[str, Any]] = getattr(options_class(name), "PRESETS", {})
    return found


def parse_spec(text: str, budget: Budget | None = None, extra: Iterable[str] = ()) -> Spec:
    """The method that `text` names; `extra` are `key=value` options, inline ones win.

    `budget` is used unless the text has its own. Raises KvchatError("usage") for unknown names
    and for values that are not allowed.
    """
    name = method_name(text)
    _, preset, inline = split_spec(text)
    known = options(name)
    values = {key: option.default for key, option in known.items()} | _preset(name, preset)
    if budget is not None and "budget" in known:
        values["budget"] = budget
    given = []
    for key, value in _pairs(name, [*extra, *inline], known):
        given.append(key)
        values[key] = _converted(name, known[key], value)
    try:
        checked = options_class(name)(**values)
    except KvchatError as error:
        message = f"{name}: {error.message}"
        raise KvchatError(error.code, message, *error.tries, **error.details) from None
    return Spec(name, {key: getattr(checked, key) for key in known}, frozenset(given))


def name_of(method: Chosen) -> str:
    """The table key of a method."""
    kind = type(method)
    path = f"{kind.__module__}:{kind.__name__}"
    return next(name for name, entry in METHODS.items() if entry.path == path)


def spec_of(method: Chosen) -> str:
    """Its name with the options that are not as they would be: `kvzip:chunk=32,bits=4`."""
    usual = {option.name: option.default for option in options(name_of(method)).values()}
    changed = [
        f"{key}={value}"
        for key, value in method_options(method).items()
        if key not in usual or value != usual[key]
    ]
    return f"{name_of(method)}:{','.join(changed)}" if changed else name_of(method)


def method_options(method: Chosen) -> dict[str, Any]:
    """Options of a method as they are set, budget apart."""
    names = options(name_of(method))
    return {name: getattr(method, name) for name in names if name != "budget"}


def _pairs(name: str, texts: Iterable[str], known: dict[str, Option]) -> Iterator[tuple[str, str]]:
    """Keys and values of `key=value` options that the method has."""
    for pair in texts:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise KvchatError("usage", f"{pair!r} is not an option", f"{name}:{pair}=VALUE")
        if name in RETIRED.get(f"{key}={value}", ()):
            continue
        if key == "bits" and METHODS[name].retrieves:
            if value == "16":
                continue
            raise KvchatError(
                "usage",
                f"{name} keeps every entry as the model has it, so it takes no bits={value}",
                f"--method {name}",
                f"--method adakv:bits={value}",
            )
        if key not in known:
            has = f"has {', '.join(known)}" if known else "takes no options"
            close = get_close_matches(key, known, n=1)
            raise KvchatError(
                "usage",
                f"{name} has no option {key!r}; it {has}",
                *([f"{name}:{close[0]}={value}"] if close else [f"kvchat methods {name}"]),
            )
        yield key, value


def _preset(name: str, preset: str) -> dict[str, Any]:
    known = presets(name)
    if preset and preset not in known:
        has = f"has {', '.join(known)}" if known else "has no presets"
        raise KvchatError("usage", f"{name} has no preset {preset!r}; it {has}", f"--method {name}")
    return dict(known.get(preset, {}))


def _converted(name: str, option: Option, text: str) -> Any:
    kind = type(option.default)
    if kind is Budget:
        return Budget.parse(text)
    try:
        return TRUTHS[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        wanted = {int: "a whole number", bool: "true or false"}.get(kind, "a number")
        raise KvchatError(
            "usage",
            f"{name}: {option.name}={text} is not {wanted}",
            f"{name}:{option.name}={option.default}  (the default)",
        ) from None
