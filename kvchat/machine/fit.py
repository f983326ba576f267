"""Whether a model fits this machine, by arithmetic: asked before torch is imported."""

import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from kvchat import ram
from kvchat.engine.methods import UNSEEN
from kvchat.engine.methods.specs import parse_spec
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.sizes import CHUNKS, ITEM_BYTES, reserve_of
from kvchat.machine.plan import Workload, make_plan
from kvchat.terminal.text import size

USUAL = 8192  # tokens of the document that a model is judged by, where none is known


@dataclass(frozen=True)
class Room:
    """The device that a chat would take, `cpu` or `cuda`, and its free bytes."""

    device: str
    free: int

    @property
    def cuda(self) -> bool:
        """Whether on a card."""
        return self.device == "cuda"

    def __str__(self) -> str:
        return f"{size(self.free)} free on {self.device}"


@cache
def room(device: str = "auto", limit: int | None = None) -> Room:
    """The room of `--device`, and not more than `--mem-limit`."""
    card = None if device == "cpu" else card_free(device)
    found = Room("cpu", ram.free()) if card is None else Room("cuda", card)
    return found if limit is None else replace(found, free=min(found.free, limit))


def card_free(device: str = "auto") -> int | None:
    """Free bytes of the CUDA device that torch would take, as the driver says; None: no card."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(64)] if shown is None else shown.split(",")
    number = int(device.partition(":")[2]) if re.fullmatch(r"cuda:\d+", device) else 0
    name = names[number].strip() if number < len(names) else ""
    if not name or name.startswith("-") or not torch_takes_cards():
        return None
    # only where torch is built for cards
    import pynvml

    with suppress(pynvml.NVMLError):  # no driver, or it does not know the card
        pynvml.nvmlInit()
        by_uuid = not name.isdigit()
        ask = pynvml.nvmlDeviceGetHandleByUUID if by_uuid else pynvml.nvmlDeviceGetHandleByIndex
        handle = ask(name if by_uuid else int(name))
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
    return None


def torch_takes_cards() -> bool:
    """Whether torch is built for CUDA, as its version file says: importing it takes a second."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return False
    with suppress(OSError):
        text = Path(found.origin).with_name("version.py").read_text()
        return re.search(r"(?m)^cuda\b.*=\s*['\"]", text) is not None
    return False


def needed(config: ModelConfig, held: int, room: Room, tokens: int | None = None) -> int:
    """Bytes for a document of `tokens` tokens (`USUAL`, or what the window takes) and a chat about
    it, with the default method and weights of `held` bytes."""
    limit = config.context_limit
    wanted = USUAL if tokens is None else tokens
    tokens = min(wanted, limit - reserve_of(limit))
    itemsize = min(ITEM_BYTES.get(config.dtype, 2), 4)
    most = min(limit, tokens + reserve_of(limit))
    work = Workload(
        config, itemsize, tokens, parse_spec(UNSEEN), most, CHUNKS[room.device], room.cuda
    )
    plan = replace(make_plan(work), weights=held)
    return max(plan.prefill, plan.chat)
