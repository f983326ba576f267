"""What this machine has and uses: memory by device, and the processor's name."""

import ctypes
import platform
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path
from time import perf_counter_ns

import psutil
import torch

from kvchat import ram
from kvchat.machine.plan import CONTEXT
from kvchat.terminal.text import size

Device = torch.device
CPU = Device("cpu")


def allocated(device: Device) -> int:
    """Bytes of CUDA tensors; 0 on a CPU."""
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else 0


def reserved(device: Device) -> int:
    """Bytes that torch's allocator has of a CUDA device, in use or not; 0 on a CPU."""
    return int(torch.cuda.memory_reserved(device)) if device.type == "cuda" else 0


def most_reserved(device: Device) -> int:
    """Most bytes of `reserved` since `reset_peak`; 0 on a CPU."""
    return int(torch.cuda.max_memory_reserved(device)) if device.type == "cuda" else 0


def resident() -> int:
    """Bytes of this process in RAM now."""
    return int(psutil.Process().memory_info().rss)


def in_use(device: Device) -> int:
    """Bytes in use now: of RAM by this process, or of CUDA tensors; what `peak` is the most of."""
    return allocated(device) if device.type == "cuda" else resident()


def peak(device: Device) -> int:
    """Most bytes in use since the last `reset_peak`: of RAM by this process, or of CUDA tensors."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError):  # Linux alone lets us begin a new peak
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def reset_peak(device: Device) -> None:
    """Begin a new `peak`, where the system lets us."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def total(device: Device) -> int:
    """Bytes of the device; on a CPU the machine's RAM or the control group's limit."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return ram.total()


def free(device: Device, limit: int | None = None) -> int:
    """Bytes that are free for us now, of a limit if we are given one.

    On a CPU reclaimable file pages are free, and what this process uses by now, libraries and
    interpreter, is a part of every plan.
    """
    return _free(device) if limit is None else min(_free(device), limit)


def left(device: Device, limit: int | None = None) -> int:
    """Bytes that this process may take beyond what it uses now."""
    used = reserved(device) if device.type == "cuda" else resident()
    return _free(device) if limit is None else min(_free(device), max(limit - used, 0))


def others(device: Device) -> int:
    """Bytes of a CUDA device that other processes use, about; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    return max(total(device) - _free(device) - reserved(device) - CONTEXT, 0)


def _free(device: Device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return ram.free()


def place(device: Device, limit: int | None = None) -> str:
    """A device in words, with the limit that holds there."""
    return f"{device}" if limit is None else f"{device} (--mem-limit {size(limit)})"


def release(device: Device) -> None:
    """Give back what torch's allocator has without using it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def trim() -> None:
    """Give back RAM that was freed and not returned to the system, where malloc can (glibc)."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def clock(device: Device) -> int:
    """Nanoseconds now, with all work of the device done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter_ns()


def identity(device: Device) -> str:
    """What the driver calls a CUDA device, whatever is visible to this process."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def devices() -> list[Device]:
    """The processor, and every CUDA device."""
    cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return [CPU, *(Device("cuda", number) for number in cards)]


def device_name(device: Device) -> str:
    """`cuda:0 NVIDIA …`, or the processor's name."""
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    return f"cpu {processor()}"


def processor() -> str:
    """Name of the processor."""
    with suppress(OSError):
        found = re.search(r"(?m)^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()
