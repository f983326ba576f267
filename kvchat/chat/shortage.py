"""What to say when memory runs out in spite of the plan."""

from kvchat.chat.chat import Chat
from kvchat.errors import KvchatError, is_out_of_memory
from kvchat.machine import gpu_processes
from kvchat.machine import resources as machine
from kvchat.terminal.text import size


def out_of_memory(chat: Chat, error: Exception) -> Exception:
    """The error to raise: what was planned against what there is, if memory ran out."""
    if not is_out_of_memory(error):
        return error
    device = chat.session.engine.device
    elsewhere = f"; {used}" if (used := gpu_processes.other_processes(device)) else ""
    return KvchatError(
        "memory",
        f"out of memory: {size(machine.free(device))} of {size(machine.total(device))} are free on "
        f"{device}, {size(machine.peak(device))} were in use at most{elsewhere}; the chat is as it "
        "was",
        "/budget 10%",
        f"--prefill-chunk {max(chat.session.engine.chunk // 4, 1)}",
        "/reset  (forgets document and chat)",
    )
