"""`--dummy`: a model's shape without its weights, by name, from a config.json
or GGUF file."""

from pathlib import Path

from kvchat.engine.gguf import is_gguf
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.model.geometries import GEOMETRIES
from kvchat.engine.model.hugging_face import interpret
from kvchat.engine.model.json_values import read_json
from kvchat.engine.model.read import load_config
from kvchat.errors import KvchatError
from kvchat.terminal.text import clean


def dummy(text: str) -> tuple[str, ModelConfig]:
    """The name and the config of a shape. Raises KvchatError."""
    if text in GEOMETRIES:
        return text, interpret(GEOMETRIES[text], text)
    path = Path(text).expanduser()
    if not path.is_file():
        if (path / "config.json").is_file():
            return str(path), load_config(path)
        raise KvchatError(
            "input",
            f"{clean(text)} is neither a file nor one of {', '.join(GEOMETRIES)}",
            *(f"--dummy {name}" for name in GEOMETRIES),
            "--dummy FOLDER/config.json, or model.gguf",
        )
    if is_gguf(path):
        return str(path), load_config(path)
    return str(path), interpret(read_json(path), str(path))
