"""Makes the method that a text names; `specs` reads the text."""

from collections.abc import Iterable
from dataclasses import replace

from kvchat.engine.budget import Budget
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.specs import (
    load,
    method_name,
    name_of,
    options,
    parse_spec,
    presets,
    split_spec,
)


def parse_method(spec: str, budget: Budget | None = None, extra: Iterable[str] = ()) -> Method:
    """The method that `spec` names; see `parse_spec`. Raises KvchatError("usage")."""
    found = parse_spec(spec, budget, extra)
    method: Method = load(found.name)(**found.values)
    return method


def switched(
    spec: str, before: Method, defaults: Iterable[str] = (), given: Iterable[str] = ()
) -> Method:
    """The method that `spec` names, in the place of the method `before`.

    Budget and bits of `before` stay as far as the new method has them. `defaults` are the
    `key=value` of `[methods.NAME]`, `given` those of the command line, of which options of other
    methods are left out; the spec's own win over all. Raises KvchatError("usage").
    """
    name = method_name(spec)
    known = options(name)
    pairs = [pair for pair in given if pair.partition("=")[0].strip() in known]
    if "bits" in known and before.bits != 16:
        pairs.append(f"bits={before.bits}")
    preset = presets(name).get(split_spec(spec)[1], {})
    own = "budget" in preset or "budget" not in options(name_of(before))
    budget = None if own else before.budget
    return parse_method(spec, budget, [*defaults, *pairs])


def with_budget(method: Method, budget: Budget) -> Method:
    """The same method with another budget."""
    changed: Method = replace(method, budget=budget)  # type: ignore[type-var]
    return changed
