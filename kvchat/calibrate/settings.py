"""Options of `kvchat calibrate`."""

from dataclasses import dataclass

from kvchat.settings.chat_options import CACHE
from kvchat.settings.kinds import PATH, SWITCH, one_of
from kvchat.settings.option import option, shared
from kvchat.settings.options import Options
from kvchat.settings.program_options import SCREEN

GATE, MAPS = "kvzap", "less"  # the methods that want something fitted


@dataclass(frozen=True)
class Settings:
    """Which model, and how it is loaded; texts are arguments."""

    purpose: str = option(
        "--for",
        CACHE,
        "The method to fit for: kvzap's gate, or less's maps.",
        one_of(GATE, MAPS),
        default=GATE,
    )
    device: str = shared(Options, "device")
    dtype: str = shared(Options, "dtype")
    weights: str = shared(Options, "weights")
    threads: int | None = shared(Options, "threads")
    out: str | None = option("--out", CACHE, "Folder of what is fitted (the user's data).", PATH)
    again: bool = option(
        "--again", SCREEN, "Begin anew, and replace what is there.", kind=SWITCH, default=False
    )
