"""The line under the prompt: fields chosen by width, because a long toolbar is cut, not wrapped."""

from dataclasses import dataclass

from kvchat.terminal.text import kept_of, level, short, size, sizes


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
    peak: int = 0
    where: str = "ram"
    inexact: bool = False  # after an answer that was stopped
    notice: str = ""  # of something that is not as it was asked for


def toolbar(state: State, width: int) -> str:
    """The fullest toolbar that fits `width` columns. Context and KV kept are in each of them."""
    share = state.used / state.limit
    about = "~" if state.inexact else ""
    context = f"{about}{share:.0%} {level(share)}".rstrip()
    tokens = f"{about}{short(state.used)}/{short(state.limit)}"
    filled = round(9 * min(share, 1))
    bar = "▓" * filled + "░" * (9 - filled)
    kv = kept_of(state.kv, state.kv_full)
    memory = f"{state.where} {size(state.resident)}"
    whole = f"{state.where} {sizes(state.resident, state.total)}"
    speed = [f"{state.speed:.0f} t/s"] if state.speed else []
    peak = [f"{whole} peak {size(state.peak)}"] if state.peak else [whole]
    ctx, kept = f"ctx {tokens} {context}", f"KV {kv}"
    notice = [f"! {state.notice}"] if state.notice else []
    wide = [state.model, f"ctx {tokens} {bar} {context}", state.method, kept]
    choices = (
        " · ".join([*wide, *peak, *speed, *notice]),
        "  ".join([ctx, kept, state.method, whole, *speed, *notice]),
        "  ".join([ctx, kept, state.method, memory, *speed, *notice]),
        "  ".join([ctx, kept, state.method, memory, *notice]),
        "  ".join([f"ctx {context}", kept, state.method, memory, *notice]),
        "  ".join([f"ctx {context}", kept, memory, *notice]),
        "  ".join([f"ctx {context}", kept, *notice]),
    )
    # the full form needs 122 columns even where it is short: the eye should not have to search
    fitting = [text for text in choices[width < 122 :] if len(text) <= width]
    return fitting[0] if fitting else f"ctx {context}  KV {size(state.kv)}"[:width]
