"""The line under the prompt: fields chosen by width, because a long toolbar is cut, not wrapped."""

from dataclasses import dataclass

from kvchat.app.text import level, short, size


@dataclass(frozen=True)
class State:
    """Cached numbers that the toolbar shows; bytes and tokens."""

    model: str
    method: str
    used: int
    limit: int
    kv: int
    kv_full: int
    resident: int
    total: int
    speed: float = 0.0


def toolbar(state: State, width: int) -> str:
    """The toolbar for a terminal of `width` columns. Context and KV kept are never dropped."""
    share = state.used / state.limit
    word = level(share)
    context = f"{share:.0%}" + (f" {word}" if word else "")
    tokens = f"{short(state.used)}/{short(state.limit)}"
    kept, full = size(state.kv), size(state.kv_full)
    speed = f"  {state.speed:.0f} t/s" if state.speed else ""
    ram = size(state.resident)
    if width >= 122:
        filled = round(9 * min(share, 1))
        bar = "▓" * filled + "░" * (9 - filled)
        text = (
            f"{state.model} · ctx {tokens} {bar} {context} · {state.method} · "
            f"KV {kept} of {full} · ram {ram} of {size(state.total)}"
        )
        return text + speed.replace("  ", " · ")
    if width >= 80:
        text = f"ctx {tokens} {context}  KV {kept} of {full} {state.method}  ram {ram}"
        return text + speed if len(text + speed) <= width else text[:width]
    if width >= 60:
        return f"ctx {context}  KV {kept} of {full}  ram {ram}"[:width]
    return f"ctx {context}  KV {kept}"[:width]
