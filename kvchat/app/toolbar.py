"""The line under the prompt: fields chosen by width, because a long toolbar is cut, not wrapped."""

from dataclasses import dataclass

from kvchat.app.text import level, short, size, sizes


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
    """The fullest toolbar that fits `width` columns. Context and KV kept are in each of them."""
    share = state.used / state.limit
    context = f"{share:.0%} {level(share)}".rstrip()
    tokens = f"{short(state.used)}/{short(state.limit)}"
    filled = round(9 * min(share, 1))
    bar = "▓" * filled + "░" * (9 - filled)
    kv, ram = sizes(state.kv, state.kv_full), size(state.resident)
    speed = [f"{state.speed:.0f} t/s"] if state.speed else []
    wide = [state.model, f"ctx {tokens} {bar} {context}", state.method, f"KV {kv}"]
    fields = [f"ctx {tokens} {context}", f"KV {kv}", state.method, f"ram {ram}"]
    choices = (
        " · ".join([*wide, f"ram {sizes(state.resident, state.total)}", *speed]),
        "  ".join([*fields, *speed]),
        "  ".join(fields),
        f"ctx {context}  KV {kv}  ram {ram}",
        f"ctx {context}  KV {kv}",
    )
    fitting = [text for text in choices if len(text) <= width]
    return fitting[0] if fitting else f"ctx {context}  KV {size(state.kv)}"[:width]
