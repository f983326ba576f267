"""The config of a checkpoint, whatever its format. No torch."""

from pathlib import Path

from kvchat.engine.gguf import is_gguf
from kvchat.engine.model import gguf, hugging_face
from kvchat.engine.model.config import ModelConfig


def load_config(path: Path) -> ModelConfig:
    """Of a folder with config.json, or of a GGUF file.

    Raises KvchatError("model") naming what is not supported.
    """
    return gguf.load(path) if is_gguf(path) else hugging_face.load(path)
