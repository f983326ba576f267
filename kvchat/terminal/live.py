"""Live areas on the terminal: one that stops being ours, for a while, is left without them."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.live import Live
from rich.progress import Progress

Area = Live | Progress  # that leaves nothing behind when it stops
_areas: list[Area] = []


@contextmanager
def shown(area: Area) -> Iterator[None]:
    """The area is on the terminal."""
    area.start()
    _areas.append(area)
    try:
        yield
    finally:
        _areas.remove(area)
        area.stop()


@contextmanager
def away() -> Iterator[None]:
    """Live areas are taken away, and rendered anew where the cursor is then."""
    areas = list(_areas)
    for area in areas:
        area.stop()
    _areas.clear()
    try:
        yield
    finally:
        _areas[:0] = areas
    for area in areas:
        area.start()
