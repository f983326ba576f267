"""Cached documents on disk: safetensors files that appear whole or not at all. No torch."""

import hashlib
from pathlib import Path

from kvchat.engine.gguf import is_gguf
from kvchat.engine.gguf.file import header_of

FORMAT = 1
"""Raise it when a cached document would be read differently: older files are then refused."""

SUFFIX = ".safetensors"

# What decides which ids a text becomes; ids of another tokenizer mean something else.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
)


class Refused(Exception):
    """A cached document that cannot be used; the text says why."""


def tokenizer_digest(folder: Path) -> str:
    """A digest of what turns text into ids in a model's folder, or in a GGUF file's header."""
    digest = hashlib.sha256()
    if is_gguf(folder):
        digest.update(header_of(folder))
        return digest.hexdigest()
    for name in TOKENIZER_FILES:
        file = folder / name
        digest.update(name.encode() + (file.read_bytes() if file.exists() else b""))
    return digest.hexdigest()
