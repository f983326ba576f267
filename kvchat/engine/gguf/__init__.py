"""GGUF, the checkpoint format of llama.cpp: one file (or a split one) with weights, shapes,
tokenizer and chat template."""

from pathlib import Path

from kvchat.files import is_regular

MAGIC = b"GGUF"


def is_gguf(path: Path) -> bool:
    """Whether a file calls itself GGUF: by its first bytes too, for blobs have no telling name."""
    if not is_regular(path):
        return False
    try:
        with path.open("rb") as file:
            return path.suffix == ".gguf" or file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False
