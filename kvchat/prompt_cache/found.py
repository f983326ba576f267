"""What a saved document was found to be. Imports no torch."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Found:
    """A document was read before: when, and how long that took and this (seconds)."""

    created: datetime
    read_seconds: float
    seconds: float
