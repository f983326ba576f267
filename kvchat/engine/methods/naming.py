"""What a method is called and how it is set, in the words of a spec. Imports no torch."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Protocol, runtime_checkable

from kvchat.engine.methods import METHODS
from kvchat.engine.methods.needs import Chosen


@runtime_checkable
class Staged(Protocol):
    """A method with a stage after it, which stores its entries in another way."""

    @property
    def method(self) -> Chosen:
        """The method before the stage."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """The stage as options of a spec."""
        ...


def name_of(method: Chosen) -> str:
    """The table key of a method."""
    while isinstance(method, Staged):
        method = method.method
    kind = type(method)
    path = f"{kind.__module__}:{kind.__name__}"
    return next(name for name, entry in METHODS.items() if entry.path == path)


def spec_of(method: Chosen) -> str:
    """Its name with the options that are not as they would be: `kvzip:chunk=32,bits=4`."""
    changed = ",".join(f"{option}={value}" for option, value in _changed(method).items())
    return f"{name_of(method)}:{changed}" if changed else name_of(method)


def method_options(method: Chosen) -> dict[str, Any]:
    """Options of a method as they are set, budget apart."""
    if isinstance(method, Staged):
        return {**method_options(method.method), **method.settings}
    return {f.name: getattr(method, f.name) for f in fields(method) if f.name != "budget"}  # type: ignore[arg-type]


def _changed(method: Chosen) -> dict[str, Any]:
    """Options that differ from their defaults, budget apart."""
    if isinstance(method, Staged):
        return {**_changed(method.method), **method.settings}
    usual = {f.name: f.default for f in fields(method)}  # type: ignore[arg-type]
    return {name: v for name, v in method_options(method).items() if v != usual[name]}
