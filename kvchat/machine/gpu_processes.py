"""Which other processes use the memory of a CUDA device, as NVIDIA's management library says."""

import os
from contextlib import suppress
from dataclasses import dataclass

from kvchat.machine import resources as machine
from kvchat.machine.plan import CONTEXT
from kvchat.terminal.text import clean, size, sizes

NAMED = 3  # processes


@dataclass(frozen=True)
class Process:
    """A process on a CUDA device with its bytes; 0 where the driver does not tell them."""

    pid: int
    name: str
    used: int


def other_processes(device: machine.Device) -> str:
    """`7.20 of 23.60 GiB are used by other processes (pid 4242 python, 6.60 GiB)`.

    Empty on a CPU, and where little more is in use than our own.
    """
    used = machine.others(device)
    if used < CONTEXT:
        return ""
    return described(used, machine.total(device), processes(machine.identity(device)))


def described(used: int, total: int, there: list[Process]) -> str:
    """What other processes use, the largest by name."""
    largest = sorted(there, key=lambda process: -process.used)[:NAMED]
    names = [
        f"pid {each.pid} {clean(each.name)}" + (f", {size(each.used)}" if each.used else "")
        for each in largest
    ]
    who = f" ({'; '.join(names)})" if names else ""
    return f"{sizes(used, total)} are used by other processes{who}"


def processes(identity: str) -> list[Process]:
    """Other processes on the device of that name; none where the driver does not say."""
    # only a card that others use is asked about
    import pynvml

    found = []
    with suppress(pynvml.NVMLError):  # no driver, or it does not know the card
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(identity)
        for each in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            name = ""  # of a process that has ended by now, or is another user's
            with suppress(pynvml.NVMLError):
                name = os.path.basename(str(pynvml.nvmlSystemGetProcessName(each.pid)))
            if each.pid != os.getpid():
                found.append(Process(each.pid, name, each.usedGpuMemory or 0))
    return found
