"""What this machine has: memory of the process and of the system, threads, names."""

import os
import platform
import resource
import sys
from contextlib import suppress
from pathlib import Path

CGROUP = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
CGROUP_USED = (
    Path("/sys/fs/cgroup/memory.current"),
    Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def _proc(path: str) -> dict[str, int]:
    """Sizes of a `/proc` table in bytes; empty where there is no /proc."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if line.rstrip().endswith("kB"))
    return {key: int(value.split()[0]) * 1024 for key, value in pairs}


def resident() -> int:
    """Bytes of this process in RAM now."""
    return _proc("/proc/self/status").get("VmRSS", peak_resident())


def peak_resident() -> int:
    """Most bytes of this process in RAM since the start or the last `reset_peak`."""
    if peak := _proc("/proc/self/status").get("VmHWM"):
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak() -> None:
    """Begin a new `peak_resident`, where the system lets us."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def total_memory() -> int:
    """Bytes of RAM that this process may use: the machine's, or its control group's limit."""
    machine = _proc("/proc/meminfo").get("MemTotal") or (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    )
    return min([machine, *_limits(CGROUP)])


def free_memory() -> int:
    """Bytes of RAM that are free for us now, reclaimable file pages included."""
    free = _proc("/proc/meminfo").get("MemAvailable", total_memory())
    limits, used = _limits(CGROUP), _limits(CGROUP_USED)
    if limits and used:
        free = min(free, limits[0] - used[0] + _proc("/proc/meminfo").get("Cached", 0))
    return max(free, 0)


def processor() -> str:
    """Name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _limits(paths: tuple[Path, ...]) -> list[int]:
    values = []
    for path in paths:
        try:
            values.append(int(path.read_text()))
        except (OSError, ValueError):  # "max", or no such control group
            continue
    return values
