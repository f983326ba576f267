"""Reads method specs: `adakv`, `adakv:window=16,floor=0.3`, `adakv@preset:budget=20%`.

Names, types and defaults come from the method's dataclass fields, so they are the same everywhere.
"""

from collections.abc import Iterable
from dataclasses import MISSING, Field, fields, replace
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from kvchat.engine.budget import Budget
from kvchat.engine.methods import METHODS
from kvchat.engine.methods.base import Method, Retrieves
from kvchat.engine.methods.naming import name_of
from kvchat.engine.methods.quantized import BITS, Quantized
from kvchat.engine.methods.refit import PARTS, Refit
from kvchat.engine.methods.stage import Stage, stages
from kvchat.errors import KvchatError

# Options of every method: how what it keeps is stored. The values first that leave it as it is.
STAGES = {"refit": ("no", *PARTS), "bits": ("16", *map(str, BITS))}
PLAIN = {option: choices[0] for option, choices in STAGES.items()}
TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def method_name(spec: str) -> str:
    """The table key that a spec begins with. Raises KvchatError("usage") if there is none."""
    name = spec.partition(":")[0].partition("@")[0].strip()
    if name not in METHODS:
        raise KvchatError(
            "usage",
            f"unknown method {name!r}; there are {', '.join(METHODS)}",
            *(f"--method {close}" for close in get_close_matches(name, METHODS, n=1)),
            "kvchat methods",
        )
    return name


def method_class(name: str) -> type:
    """The dataclass of a method in the table."""
    module, cls = METHODS[name].path.split(":")
    return getattr(import_module(module), cls)


def options(name: str) -> dict[str, Field]:
    """The options of a method: its dataclass fields by name."""
    return {field.name: field for field in fields(method_class(name))}


def parse_method(spec: str, budget: Budget | None = None, extra: Iterable[str] = ()) -> Method:
    """The method that `spec` names; `extra` are `key=value` options, inline ones win.

    `budget` is used unless the spec has its own. Every method takes `bits=8` or `bits=4`, which
    stores what it keeps quantised, and `refit=bias` or `refit=all`, which fits it to what is read.
    Raises KvchatError("usage") for unknown names and for values of the wrong type.
    """
    name = method_name(spec)
    known = options(name)
    head, _, inline = spec.partition(":")
    values: dict[str, Any] = _preset(name, head.partition("@")[2].strip())
    if budget is not None and "budget" in known:
        values["budget"] = budget
    stored = dict(PLAIN)
    for pair in [*extra, *filter(None, (part.strip() for part in inline.split(",")))]:
        key, equals, text = (part.strip() for part in pair.partition("="))
        if not equals:
            raise KvchatError("usage", f"{pair!r} is not an option", f"{name}:{pair}=VALUE")
        if key in stored:
            stored[key] = _choice(name, key, text)
            continue
        if key not in known:
            has = f"has {', '.join(known)}" if known else "takes no options"
            close = get_close_matches(key, known, n=1)
            raise KvchatError(
                "usage",
                f"{name} has no option {key!r}; it {has}",
                *(f"{name}:{match}={text}" for match in close),
            )
        values[key] = _convert(name, known[key], text)
    return _staged(method_class(name)(**values), stored)


def presets(name: str) -> dict[str, dict[str, Any]]:
    """Named settings of a method: option values by name of the preset."""
    return getattr(method_class(name), "PRESETS", {})


def default_of(field: Field) -> Any:
    """The default of an option."""
    if field.default is not MISSING:
        return field.default
    assert field.default_factory is not MISSING
    return field.default_factory()


def bits_of(method: Method) -> int | None:
    """In how many bits a method stores what it keeps; None for as the model has it."""
    return next((stage.bits for stage in stages(method) if isinstance(stage, Quantized)), None)


def code_of(method: Method) -> tuple[int, int] | None:
    """Parts and bits of a key's code, for a method that keeps every entry and codes it."""
    return method.code if isinstance(method, Retrieves) else None


def with_budget(method: Method, budget: Budget) -> Method:
    """The same method with another budget."""
    if isinstance(method, Stage):
        return replace(method, method=with_budget(method.method, budget))
    return replace(method, budget=budget)  # type: ignore[type-var]


def _staged(method: Method, stored: dict[str, str]) -> Method:
    """The method, with what it keeps stored in this way."""
    changed = [f"{option}={stored[option]}" for option in STAGES if stored[option] != PLAIN[option]]
    if changed and isinstance(method, Retrieves):
        name = name_of(method)
        raise KvchatError(
            "usage",
            f"{name} keeps every entry as the model has it, so it takes no {' and '.join(changed)}",
            f"--method {name}",
            f"--method adakv:{','.join(changed)}",
        )
    if stored["refit"] in PARTS:
        method = Refit(method, stored["refit"])
    return Quantized(method, int(stored["bits"])) if stored["bits"] != "16" else method


def _choice(name: str, option: str, text: str) -> str:
    choices = STAGES[option]
    if text not in choices:
        tries = [f"{name}:{option}={choice}" for choice in choices]
        known = ", ".join(choices)
        raise KvchatError("usage", f"{name}: {option}={text} is none of {known}", *tries)
    return text


def _preset(name: str, preset: str) -> dict[str, Any]:
    known = presets(name)
    if preset and preset not in known:
        has = f"has {', '.join(known)}" if known else "has no presets"
        raise KvchatError("usage", f"{name} has no preset {preset!r}; it {has}", f"--method {name}")
    return dict(known.get(preset, {}))


def _convert(name: str, field: Field, text: str) -> Any:
    kind = field.type if isinstance(field.type, type) else type(default_of(field))
    if kind is Budget:
        return Budget.parse(text)
    try:
        return TRUTHS[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        wanted = {int: "a whole number", bool: "true or false"}.get(kind, "a number")
        raise KvchatError(
            "usage",
            f"{name}: {field.name}={text} is not {wanted}",
            f"{name}:{field.name}={default_of(field)}  (the default)",
        ) from None
