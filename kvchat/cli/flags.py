"""Options that several commands of the command line share."""

import os
import re
from typing import Annotated

import typer

from kvchat.engine.attention import BACKENDS
from kvchat.engine.budget import UNITS
from kvchat.engine.methods import METHODS
from kvchat.engine.model.geometries import GEOMETRIES
from kvchat.engine.weights.bits import WEIGHTS
from kvchat.errors import KvchatError
from kvchat.terminal.text import clean

Model = Annotated[
    str | None,
    typer.Option("-m", "--model", help="Folder, name under models/, alias, or org/repo."),
]
Method = Annotated[
    str | None, typer.Option(help=f"{', '.join(METHODS)}; options as NAME:key=value,…")
]
Methods = Annotated[list[str] | None, typer.Option("--method", help="Methods; repeatable.")]
KEPT = typer.Option("--budget", "--kv-budget", help="What is KEPT: 25%, 2048 (rows), 1.5GiB.")
Budget = Annotated[str | None, KEPT]
Budgets = Annotated[list[str] | None, KEPT]
Bits = Annotated[
    int | None, typer.Option("--kv-bits", help="Bits of a kept value: 16 (as it is), 8, 4.")
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N.")]
Dtype = Annotated[str | None, typer.Option(help="auto, bf16, f16, f32.")]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Weights as they are in the checkpoint (auto), or stored as bf16, int8, int4.",
        autocompletion=lambda: list(WEIGHTS),
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(help=f"auto, {', '.join(BACKENDS)} (flash reads only)."),
]
MOST_THREADS = 4 * (os.cpu_count() or 1)
Threads = Annotated[int | None, typer.Option(min=1, max=MOST_THREADS, help="CPU threads.")]
Dummy = Annotated[
    str | None,
    typer.Option(help=f"No checkpoint, only a shape: {', '.join(GEOMETRIES)}, or a config.json."),
]
Chunk = Annotated[
    str | None,
    typer.Option("--prefill-chunk", help="Tokens read at once (512; CUDA 2048)."),
]
Window = Annotated[
    str | None, typer.Option("-c", "--ctx-size", help="Window to use: 8192, 32k, 32K.")
]
KeepFull = Annotated[
    str | None,
    typer.Option(help="A full copy of the KV, to choose from for each question: off, host, disk."),
]
Select = Annotated[
    str | None,
    typer.Option(help="What chooses the kept rows: document, question, instruction."),
]
AutoLoss = Annotated[
    str | None,
    typer.Option(help="Smallest budget that changes at most that share of held-out tokens: 2%."),
]
KvCache = Annotated[
    str | None, typer.Option(help="Saved readings: on, off, read (used, but none saved).")
]
KvCacheDir = Annotated[str | None, typer.Option(help="Folder of the saved readings.")]
Encoding = Annotated[str | None, typer.Option(help="Encoding of the documents.")]
Clean = Annotated[
    bool, typer.Option("--clean", help="Drop headers that pages repeat, join broken words.")
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a model in the cache.")
]
TokenizerFolder = Annotated[
    str | None, typer.Option("--tokenizer", help="Folder of another tokenizer.")
]
Template = Annotated[
    str | None, typer.Option("--chat-template", help="A Jinja file in place of the model's.")
]
NoTemplate = Annotated[
    bool, typer.Option("--no-chat-template", help="Plain Question / Answer form.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Nothing asks the network.")]
MemoryLimit = Annotated[
    str | None, typer.Option("--mem-limit", help="Memory that kvchat may plan with: 20GiB.")
]
Stream = Annotated[
    bool, typer.Option("--stream/--no-stream", help="Show an answer while it is written.")
]
LogFile = Annotated[
    str | None, typer.Option("--log-file", help="Append notices, errors and numbers to a file.")
]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")]


def tokens(name: str, text: str | None) -> int | None:
    """The number of tokens of an option that may be absent. Raises KvchatError."""
    return None if text is None else number(name, text)


def number(name: str, text: str, least: int = 1) -> int:
    """A number of tokens: `4096`, `32k` (thousands), `32K` (1,024 each). Raises KvchatError."""
    match = re.fullmatch(r"(\d{1,9})([kK]?)", text)
    count = int(match[1]) * {"": 1, "k": 1000, "K": 1024}[match[2]] if match else -1
    if count < least:
        beyond = f" of {least} or more" if match else ""
        raise KvchatError(
            "usage",
            f"{name} {clean(text)!r} is not a number of tokens{beyond}",
            f"{name} 8192",
            f"{name} 32k",
        )
    return count


def thread_counts(given: list[int]) -> list[int]:
    """Numbers of CPU threads, as they are. Raises KvchatError("usage")."""
    if max(given, default=1) > MOST_THREADS:
        raise KvchatError(
            "usage",
            f"--threads {max(given):,} is more than {MOST_THREADS}, four for each processor here",
            f"--threads {os.cpu_count() or 1}",
        )
    return given


def share(name: str, text: str) -> float:
    """The part of one that `2%` or `0.02` is. Raises KvchatError("usage")."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(%?)\s*", text)
    part = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= part < 1:
        raise KvchatError("usage", f"{name} {clean(text)!r} is no share below 100%", f"{name} 2%")
    return part


def byte_count(name: str, text: str) -> int:
    """Bytes of `24GiB`, `16 GB`, `0`. Raises KvchatError("usage")."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    count = float(match[1]) if match else 0.0
    unit = match[2].lower() if match else "?"
    if unit not in UNITS or (count and not unit):
        raise KvchatError("usage", f"{name} {clean(text)!r} is not a size", f"{name} 24GiB")
    return int(count * UNITS[unit])
