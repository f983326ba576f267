"""Where the memory is, told apart: measured from tensors, torch's allocator and the system."""

from dataclasses import dataclass

from kvchat.chat.cache_views import saving
from kvchat.chat.chat import Chat
from kvchat.machine import resources as machine
from kvchat.terminal.text import fitted, laid, size, sizes

NARROW = 28  # columns beside the numbers, below which a note stands under its entry


@dataclass(frozen=True)
class Breakdown:
    """Bytes on the compute device. On a CPU `process` is resident RAM; weights mapped from their
    file are a part of it once they were used."""

    device: str
    weights: int
    stored: str  # how: the dtype, or in few bits
    document: int
    tail: int
    index: int
    workspace: int
    preallocated: int
    other: int  # of this process: libraries, driver, tokenizer
    process: int
    peak: int
    others: int  # other processes, and what the system keeps for itself
    free: int
    total: int
    full: int
    host: int
    disk: int
    read: str  # what a written token reads of the document; empty: all that is kept
    captured: float | None  # of the attention, by what was read


def breakdown(chat: Chat) -> Breakdown:
    """Measure now."""
    session, engine = chat.session, chat.session.engine
    device, held, archived = engine.device, session.memory(), session.cache.archived()
    segments = list(session.cache.segments())
    document = sum(s.memory().device for layer in chat.document_segments() for s in layer)
    document += sum(layer.window_bytes for layer in session.cache.layers)
    index = sum(segment_index(segment) for segment in segments)
    weights, free, total = engine.weights_bytes, machine.free(device), machine.total(device)
    used = max(total - free, 0)
    if device.type == "cuda":
        allocated, reserved = machine.allocated(device), machine.reserved(device)
        workspace = max(allocated - weights - held.device, 0)
        preallocated, process, other = reserved - allocated, reserved, 0
    else:
        process = machine.resident()
        workspace, preallocated = 0, session.cache.preallocated
        other = max(process - weights - held.device - held.host - archived.host, 0)
    return Breakdown(
        device=machine.device_name(device),
        weights=weights,
        stored=engine.weights,
        document=document - index,
        tail=held.device - document,
        index=index,
        workspace=workspace,
        preallocated=preallocated,
        other=other,
        process=process,
        peak=machine.peak(device),
        others=max(used - process, 0),
        free=free,
        total=total,
        full=session.full_bytes(),
        host=held.host + archived.host,
        disk=held.disk + archived.disk,
        read=chat.reads(),
        captured=session.cache.captured,
    )


def lines(found: Breakdown, width: int, unicode: bool) -> list[str]:
    """The view of `/memory`."""
    kept = found.document + found.tail
    share = f" ({found.document / max(found.full, 1):.0%} of all)" if found.full else ""
    cuda = found.device.startswith("cuda")
    entries = [
        ("weights", found.weights, found.stored),
        ("KV kept", kept, f"document {size(found.document)}{share} + chat {size(found.tail)}"),
        ("KV index", found.index, "codes and codebooks" if found.index else ""),
        *([("workspace", found.workspace, "now")] if cuda else []),
        (
            "preallocated",
            found.preallocated,
            "held by torch, not in use" if cuda else "for the next turns",
        ),
        *([] if cuda else [("the rest", found.other, "libraries, tokenizer, workspace")]),
        ("this process", found.process, f"{size(found.peak)} at most, while reading"),
        ("others", found.others, "driver and other processes" if cuda else "other processes"),
        ("free", found.free, f"of {size(found.total)}"),
    ]
    text = [f"memory · {found.device}"]
    room = max(width - 66, 0)
    for name, count, note in entries:
        bar = ("█" if unicode else "#") * round(room * count / max(found.total, 1))
        start = f"  {name:<13}{size(count):>11}  "
        aside = laid(f"{bar}{' ' * bool(bar)}{note}", width - len(start), 0).split("\n")
        if len(aside) > 1 and width - len(start) < NARROW:
            text += [start.rstrip(), laid(f"    {note}", width, 0)]
        else:
            more = (" " * len(start) + line for line in aside[1:])
            text += [f"{start}{aside[0]}".rstrip(), *more]
    if found.full:
        text.append(f"  KV in full would be {size(found.full)} · {saving(kept, found.full)}")
    if found.read:
        share = f" · {found.captured:.0%} of the attention, by codes" if found.captured else ""
        text.append(f"  a written token reads {found.read} of the document{share}")
    if found.host or found.disk:
        places = (("device", kept), ("host RAM", found.host), ("disk, mapped", found.disk))
        text.append("  KV " + " · ".join(f"{place} {size(count)}" for place, count in places))
    return text


def line(found: Breakdown, width: int) -> str:
    """The same in one line of at most `width` columns, for the toolbar."""
    kept = found.document + found.tail + found.index
    parts = [
        (f"weights {size(found.weights)}", 2),
        (f"KV {size(kept)}", 0),
        (f"process {size(found.process)}", 1),
        (f"peak {size(found.peak)}", 4),
        (f"others {size(found.others)}", 3),
        (f"free {sizes(found.free, found.total)}", 0),
    ]
    return fitted(parts, width)[:width]


def segment_index(segment) -> int:
    """Bytes of a segment that are neither keys, values nor entries' metadata: codes, codebooks."""
    names = ("codes", "centroids")
    return sum(
        t.nbytes
        for name, t in segment.tensors().items()
        if name in names or name.startswith("cell_")
    )
