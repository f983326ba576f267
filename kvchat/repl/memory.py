"""Memory usage, told apart: measured from tensors, torch's allocator and the system."""

from dataclasses import dataclass
from typing import Any

from kvchat.chat.chat import Chat
from kvchat.machine import resources as machine
from kvchat.terminal.text import alike, fitted, size, sizes


@dataclass(frozen=True)
class Breakdown:
    """Bytes on the compute device. On a CPU `process` is resident RAM; weights mapped from their
    file are a part of it once they were used."""

    device: str
    weights: int
    stored: str  # how: the dtype, or quantized
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
    full: int  # what document and conversation would hold uncompressed
    document_full: int
    host: int
    disk: int
    read: str  # what a decoded token attends to of the document; empty: all that is kept
    captured: float | None  # of the attention, by what was read


def breakdown(chat: Chat) -> Breakdown:
    """Measure now."""
    session, engine = chat.session, chat.session.engine
    device, used, archived = engine.device, session.memory(), session.cache.archived()
    segments = list(session.cache.segments())
    document = sum(s.memory().device for layer in chat.document_segments() for s in layer)
    document += sum(layer.window_bytes for layer in session.cache.layers)
    index = sum(segment_index(segment) for segment in segments)
    weights, free, total = engine.weights_bytes, machine.free(device), machine.total(device)
    if device.type == "cuda":
        allocated, reserved = machine.allocated(device), machine.reserved(device)
        workspace = max(allocated - weights - used.device, 0)
        preallocated, process, other = reserved - allocated, reserved, 0
    else:
        process = machine.resident()
        workspace, preallocated = 0, session.cache.preallocated
        other = max(process - weights - used.device - used.host - archived.host, 0)
    return Breakdown(
        device=machine.device_name(device),
        weights=weights,
        stored=engine.weights,
        document=document - index,
        tail=used.device - document,
        index=index,
        workspace=workspace,
        preallocated=preallocated,
        other=other,
        process=process,
        peak=machine.peak(device),
        others=max(total - free - process, 0),
        free=free,
        total=total,
        full=session.full_bytes(),
        document_full=chat.document_full(),
        host=used.host + archived.host,
        disk=used.disk + archived.disk,
        read=chat.attended_share(),
        captured=session.cache.captured,
    )


SHADES = {True: "█▓▒░ ", False: "#%+- "}  # of weights, KV cache, the rest of us, others, free


def strip(found: Breakdown, width: int, unicode: bool) -> str:
    """All memory as one bar, whose shades are before the names of `table`."""
    ours = found.index + found.workspace + found.preallocated + found.other
    parts = found.weights, found.document + found.tail, ours, found.others
    shades, room = SHADES[unicode], width - 2
    ends = [round(room * min(sum(parts[: n + 1]) / max(found.total, 1), 1)) for n in range(4)]
    # what is there is seen, however little it is
    drawn, at = "", 0
    for shade, part, end in zip(shades, parts, ends, strict=False):
        count = max(end - at, 1 if part else 0)
        drawn, at = drawn + shade * count, at + count
    return f"[{drawn[:room]:{room}}]"


def table(found: Breakdown, unicode: bool) -> list[tuple[str, str, str, str]]:
    """Shade, name, bytes, and what they are; the bytes of one line are in one unit."""
    kept = found.document + found.tail
    whole = found.document_full
    share = f" ({found.document / whole:.0%} of the full cache)" if found.document < whole else ""
    cache, document, tail = alike(kept, found.document, found.tail)
    process, peak = alike(found.process, found.peak)
    free, total = alike(found.free, found.total)
    cuda = found.device.startswith("cuda")
    weights, keys, ours, others, nothing = tuple(SHADES[unicode])
    entries = [
        (weights, "weights", found.weights, size(found.weights), found.stored),
        (keys, "KV cache", kept, cache, f"document {document}{share} + chat {tail}"),
        (ours, "KV index", found.index, size(found.index), "codes, codebooks"),
        (ours, "workspace", found.workspace, size(found.workspace), "buffers of the moment"),
        (
            ours,
            "preallocated",
            found.preallocated,
            size(found.preallocated),
            "reserved by torch, not in use" if cuda else "for the next turns",
        ),
        (ours, "runtime overhead", found.other, size(found.other), "libraries, tokenizer, buffers"),
        (nothing, "this process", found.process, process, f"{peak} at its peak"),
        (others, "other processes", found.others, size(found.others), "system and driver included"),
        (nothing, "free", found.free, free, f"of {total}"),
    ]
    return [
        (shade, name, f"{amount:>9}", note)
        for shade, name, count, amount, note in entries
        if count or name == "free"
    ]


def notes(found: Breakdown) -> list[str]:
    """What compression saves, what is attended to, and where else the KV cache is."""
    kept, text = found.document + found.tail, []
    if found.full > kept:
        full, saved = alike(found.full, found.full - kept)
        times = found.full / max(kept, 1)
        text.append(f"the full KV cache would be {full} · {saved} saved, {times:.1f}× smaller")
    if found.read:
        seen = f" · {found.captured:.0%} of the attention, by codes" if found.captured else ""
        text.append(f"each decoded token attends to {found.read} of the document{seen}")
    if found.host or found.disk:
        beside = "in host RAM" if found.device.startswith("cuda") else "beside it, for /budget"
        device, host, disk = alike(kept, found.host, found.disk)
        parts = [f"KV on the device {device}"]
        parts += [f"{beside} {host}"] if found.host else []
        text.append(" · ".join([*parts, *([f"on disk, mapped {disk}"] if found.disk else [])]))
    return text


def on_devices(chat: Chat) -> list[str]:
    """What each device holds, where there are several: the rest is said of the first one."""
    session, engine = chat.session, chat.session.engine
    if engine.peers.count == 1:
        return []
    weights, kept = engine.weights_held(), engine.held(session.cache, session.cache.position)
    both = (" + ".join(alike(*each)) for each in (weights, kept))
    told = "weights {}, KV kept of documents and old turns {}".format(*both)
    return [f"on {engine.peers.count} devices: {told}; the above is the first one's"]


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


def segment_index(segment: Any) -> int:
    """Bytes of a segment that are neither keys, values nor entries' metadata: codes, codebooks."""
    names = ("codes", "centroids")
    return sum(
        t.nbytes
        for name, t in segment.tensors().items()
        if name in names or name.startswith("cell_")
    )
