"""Options that several commands of the command line share."""

import os
import re
from typing import Annotated

import typer

from kvchat.engine.attention import BACKENDS
from kvchat.engine.methods import METHODS
from kvchat.engine.model.bits import WEIGHTS
from kvchat.errors import KvchatError

Model = Annotated[
    str | None,
    typer.Option("-m", "--model", help="Folder, name under models/, alias, or org/repo."),
]
Method = Annotated[
    str | None, typer.Option(help=f"{', '.join(METHODS)}; options as NAME:key=value,…")
]
Methods = Annotated[list[str] | None, typer.Option("--method", help="Methods; repeatable.")]
Budget = Annotated[
    str | None,
    typer.Option("--budget", "--kv-budget", help="What is KEPT: 25%, 2048 (rows), 1.5GiB."),
]
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
    typer.Option(help=f"auto, {', '.join(BACKENDS)} (flash reads only).",
]
Threads = Annotated[
    int | None, typer.Option(min=1, max=4 * (os.cpu_count() or 1), help="CPU threads.")
]
Dummy = Annotated[str | None, typer.Option(help="A config.json: random weights of its shape.")]
Chunk = Annotated[
    str | None,
    typer.Option("--prefill-chunk", help="Tokens read at once (512; CUDA 2048)."),
]
Window = Annotated[
    str | None, typer.Option("-c", "--ctx-size", help="Window to use: 8192, 32k, 32K.")
]
Encoding = Annotated[str | None, typer.Option(help="Encoding of the documents.")]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")]


def tokens(name: str, text: str | None) -> int | None:
    """A number of tokens: `4096`, `32k` (thousands), `32K` (1,024 each). Raises KvchatError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9})([kK]?)", text)
    count = int(match[1]) * {"": 1, "k": 1000, "K": 1024}[match[2]] if match else 0
    if count < 1:
        raise KvchatError(
            "usage", f"{name} {text!r} is not a number of tokens", f"{name} 8192", f"{name} 32k"
        )
    return count
