"""Main memory: all of it, and what is free. No torch: it is asked before torch is imported."""

from contextlib import suppress
from pathlib import Path

# Limits and use of control groups, version 2 and version 1: containers have no more.
CGROUP = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
CGROUP_USED = (
    Path("/sys/fs/cgroup/memory.current"),
    Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def total() -> int:
    """Bytes of the machine's RAM, or the control group's limit."""
    # a start that asks for no memory is not slowed by it
    import psutil

    return min([int(psutil.virtual_memory().total), *_limits(CGROUP)])


def free() -> int:
    """Bytes that are free now; file pages that can be reclaimed are."""
    import psutil

    memory = psutil.virtual_memory()
    available = int(memory.available)
    limits, used = _limits(CGROUP), _limits(CGROUP_USED)
    if limits and used:  # file pages count as used there, and can be reclaimed
        available = min(available, limits[0] - used[0] + int(getattr(memory, "cached", 0)))
    return max(available, 0)


def _limits(paths: tuple[Path, ...]) -> list[int]:
    values = []
    for path in paths:
        with suppress(OSError, ValueError):  # "max", or no such control group
            values.append(int(path.read_text()))
    return values
