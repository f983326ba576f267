"""Who else holds memory of a CUDA device, as the driver's own program tells it."""

import os
import subprocess
from dataclasses import dataclass

from kvchat.machine import resources as machine
from kvchat.machine.plan import CONTEXT
from kvchat.terminal.text import clean, size, sizes

QUERY = ("--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader,nounits")
SECONDS = 5.0  # that the program may take
NAMED = 3  # processes


@dataclass(frozen=True)
class Process:
    """A process on a CUDA device with its bytes; 0 where the driver does not tell them."""

    pid: int
    name: str
    held: int


def holders(device: machine.Device) -> str:
    """`7.20 of 23.60 GiB are held by others (pid 4242 python, 6.60 GiB)`.

    Empty on a CPU, and where little more is in use than our own.
    """
    if device.type != "cuda":
        return ""
    held = machine.others(device)
    if held < CONTEXT:
        return ""
    return described(held, machine.total(device), processes(machine.identity(device)))


def described(held: int, total: int, there: list[Process]) -> str:
    """What others hold, the largest by name."""
    largest = sorted(there, key=lambda process: -process.held)[:NAMED]
    names = [
        f"pid {each.pid} {clean(each.name)}" + (f", {size(each.held)}" if each.held else "")
        for each in largest
    ]
    who = f" ({'; '.join(names)})" if names else ""
    return f"{sizes(held, total)} are held by others{who}"


def processes(identity: str) -> list[Process]:
    """Other processes on the device of that name; none where the driver's program is not there."""
    try:
        told = subprocess.run(
            ["nvidia-smi", f"--id={identity}", *QUERY],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return listed(told.stdout) if told.returncode == 0 else []


def listed(text: str) -> list[Process]:
    """The processes of lines `4242, /usr/bin/python, 6758`, in MiB; our own is left out."""
    found = []
    for line in text.splitlines():
        pid, _, rest = line.partition(",")
        name, _, held = rest.rpartition(",")
        if not pid.strip().isdecimal() or int(pid) == os.getpid():
            continue
        mebibytes = int(held) if held.strip().isdecimal() else 0  # or [N/A]
        found.append(Process(int(pid), os.path.basename(name.strip()), mebibytes * 2**20))
    return found
