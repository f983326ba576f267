"""What this machine has and uses: memory by device, and the processor's name. Imports torch only
where a CUDA device is asked about."""

import ctypes
import os
import platform
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Protocol

from kvchat.machine.plan import CONTEXT
from kvchat.terminal.text import size

CGROUP = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
CGROUP_USED = (
    Path("/sys/fs/cgroup/memory.current"),
    Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class Device(Protocol):
    """A `torch.device`, or what takes its place: `str` gives its name."""

    @property
    def type(self) -> str:
        """`cpu` or `cuda`."""
        ...


@dataclass(frozen=True)
class Named:
    """A device by its name, without torch."""

    name: str

    @property
    def type(self) -> str:
        """`cpu` or `cuda`."""
        return self.name.partition(":")[0]

    def __str__(self) -> str:
        return self.name


CPU = Named("cpu")


def _cuda() -> Any:
    # loaded by now: nobody else has a CUDA device
    from torch import cuda

    return cuda


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
    return _proc("/proc/self/status").get("VmRSS") or peak(CPU)


def peak(device: Device) -> int:
    """Most bytes in use since the last `reset_peak`: of RAM by this process, or of CUDA tensors."""
    if device.type == "cuda":
        return _cuda().max_memory_allocated(str(device))
    if most := _proc("/proc/self/status").get("VmHWM"):
        return most
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def reset_peak(device: Device) -> None:
    """Begin a new `peak`, where the system lets us."""
    if device.type == "cuda":
        _cuda().reset_peak_memory_stats(str(device))
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def reserved(device: Device) -> int:
    """Bytes that torch's allocator holds on a CUDA device, in use or not; 0 on a CPU."""
    return _cuda().memory_reserved(str(device)) if device.type == "cuda" else 0


def total(device: Device) -> int:
    """Bytes of the device; on a CPU the machine's RAM or the control group's limit."""
    if device.type == "cuda":
        return _cuda().get_device_properties(str(device)).total_memory
    machine = _proc("/proc/meminfo").get("MemTotal") or (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    )
    return min([machine, *_limits(CGROUP)])


def free(device: Device, limit: int | None = None) -> int:
    """Bytes that are free for us now, of a limit if we are given one.

    On a CPU reclaimable file pages are free, and what this process holds by now, libraries and
    interpreter, is a part of every plan.
    """
    return _free(device) if limit is None else min(_free(device), limit)


def left(device: Device, limit: int | None = None) -> int:
    """Bytes that this process may take beyond what it holds now."""
    held = reserved(device) if device.type == "cuda" else resident()
    return _free(device) if limit is None else min(_free(device), max(limit - held, 0))


def place(device: Device, limit: int | None = None) -> str:
    """A device in words, with the limit that holds there."""
    return f"{device}" if limit is None else f"{device} (--mem-limit {size(limit)})"


def _free(device: Device) -> int:
    if device.type == "cuda":
        return _cuda().mem_get_info(str(device))[0]
    available = _proc("/proc/meminfo").get("MemAvailable", total(device))
    limits, used = _limits(CGROUP), _limits(CGROUP_USED)
    if limits and used:
        cached = _proc("/proc/meminfo").get("Cached", 0)
        available = min(available, limits[0] - used[0] + cached)
    return max(available, 0)


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


def release(device: Device) -> None:
    """Give back what torch's allocator holds without using it."""
    if device.type == "cuda":
        _cuda().empty_cache()


def trim() -> None:
    """Give back RAM that was freed and not returned to the system, where malloc can (glibc)."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def in_use(device: Device) -> int:
    """Bytes in use now: of RAM by this process, or of CUDA tensors; what `peak` is the most of."""
    return allocated(device) if device.type == "cuda" else resident()


def others(device: Device) -> int:
    """Bytes of a CUDA device that other processes hold, about; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    free, whole = _cuda().mem_get_info(str(device))
    return max(whole - free - reserved(device) - CONTEXT, 0)


def most_reserved(device: Device) -> int:
    """Most bytes that torch's allocator held on a CUDA device since `reset_peak`; 0 on a CPU."""
    return _cuda().max_memory_reserved(str(device)) if device.type == "cuda" else 0


def clock(device: Device) -> int:
    """Nanoseconds now, with all work of the device done."""
    if device.type == "cuda":
        _cuda().synchronize(str(device))
    return perf_counter_ns()


def allocated(device: Device) -> int:
    """Bytes of CUDA tensors; 0 on a CPU."""
    return _cuda().memory_allocated(str(device)) if device.type == "cuda" else 0


def identity(device: Device) -> str:
    """What the driver calls a CUDA device, whatever is visible to this process."""
    return f"GPU-{_cuda().get_device_properties(str(device)).uuid}"


def devices() -> list[Device]:
    """The processor, and every CUDA device."""
    cards = range(_cuda().device_count()) if _cuda().is_available() else ()
    return [CPU, *(Named(f"cuda:{number}") for number in cards)]


def device_name(device: Device) -> str:
    """`cuda:0 NVIDIA …`, or the processor's name."""
    if device.type == "cuda":
        return f"{device} {_cuda().get_device_name(str(device))}"
    return f"cpu {processor()}"
