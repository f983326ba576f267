"""Options of `kvchat calibrate`."""

from dataclasses import dataclass

from kvchat.settings.kinds import PATH, SWITCH
from kvchat.settings.option import option, shared
from kvchat.settings.options import CACHE, SCREEN, Options


@dataclass(frozen=True)
class Settings:
    """Which model, and how it is loaded; texts are arguments."""

    device: str = shared(Options, "device")
    dtype: str = shared(Options, "dtype")
    weights: str = shared(Options, "weights")
    threads: int | None = shared(Options, "threads")
    out: str | None = option("--out", CACHE, "Folder of the gate (the user's data folder).", PATH)
    again: bool = option(
        "--again", SCREEN, "Begin anew, and replace a gate.", kind=SWITCH, default=False
    )
