"""Checks of hyper-parameters that methods share. Knows no method."""

from typing import Any

from kvchat.errors import KvchatError


def require_share(method: Any, option: str, usual: float) -> None:
    """Raise KvchatError("usage") unless an option of `method` is between 0 and 1."""
    value = getattr(method, option)
    if not 0 <= value <= 1:
        raise KvchatError(
            "usage", f"{method.name}: {option}={value:g} is outside 0–1", f"{option}={usual:g}"
        )


def require_least(method: Any, option: str, least: float, usual: float) -> None:
    """Raise KvchatError("usage") unless an option of `method` is at least `least`."""
    value = getattr(method, option)
    if not value >= least:
        raise KvchatError(
            "usage", f"{method.name}: {option}={value:g} is below {least:g}", f"{option}={usual:g}"
        )


def require_most(method: Any, option: str, most: float, usual: float) -> None:
    """Raise KvchatError("usage") unless an option of `method` is at most `most`."""
    value = getattr(method, option)
    if not value <= most:
        raise KvchatError(
            "usage", f"{method.name}: {option}={value:g} is above {most:g}", f"{option}={usual:g}"
        )


def require_known(method: Any, option: str, known: tuple[str, ...]) -> None:
    """Raise KvchatError("usage") unless an option of `method` is one of `known`."""
    value = getattr(method, option)
    if value not in known:
        tries = [f"{option}={name}" for name in known]
        raise KvchatError("usage", f"{method.name}: {option}={value} is unknown", *tries)
