"""Live areas on the terminal: one that stops being ours, for a while, is left without them."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.live import Live
from rich.progress import Progress

Area = Live | Progress  # that leaves nothing behind when it stops
_drawn: list[Area] = []


@contextmanager
def drawn(area: Area) -> Iterator[None]:
    """The area is on the terminal."""
    area.start()
    _drawn.append(area)
    try:
        yield
    finally:
        _drawn.remove(area)
        area.stop()


@contextmanager
def away() -> Iterator[None]:
    """What is drawn is taken away, and drawn anew where the cursor is then."""
    areas = list(_drawn)
    for area in areas:
        area.stop()
    _drawn.clear()
    try:
        yield
    finally:
        _drawn[:0] = areas
    for area in areas:
        area.start()
