"""Compression methods by name. The table is literal: reading it imports no torch.

A new method is one file and one entry here; `--method`, completion, `kvchat methods`, bench and
the matrix tests read this table.
"""

from typing import NamedTuple


class Entry(NamedTuple):
    """Where a method is, its idea in a line, and its paper."""

    path: str
    idea: str
    paper: str


METHODS = {
    "full": Entry(
        "kvchat.engine.methods.full:Full",
        "keeps every row of the KV cache",
        "",
    ),
    "streamingllm": Entry(
        "kvchat.engine.methods.streamingllm:StreamingLLM",
        "keeps the first tokens (attention sinks) and the most recent ones",
        "arXiv 2309.17453",
    ),
    "snapkv": Entry(
        "kvchat.engine.methods.snapkv:SnapKV",
        "keeps what the last queries attend to, the same number of rows in every head",
        "arXiv 2404.14469",
    ),
    "adakv": Entry(
        "kvchat.engine.methods.adakv:AdaKV",
        "SnapKV's scores, with a layer's rows shared out among its heads by need",
        "arXiv 2407.11550",
    ),
}

DEFAULT = "adakv"
