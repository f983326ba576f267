"""`--dummy`: a model's shape without its weights, by name or from a config.json."""

from pathlib import Path

from kvchat.engine.model.config import ModelConfig, read_json
from kvchat.engine.model.geometries import GEOMETRIES
from kvchat.errors import KvchatError
from kvchat.terminal.text import clean


def dummy(text: str) -> tuple[str, ModelConfig]:
    """The name and the config of a shape. Raises KvchatError."""
    if text in GEOMETRIES:
        return text, ModelConfig.from_dict(GEOMETRIES[text], text)
    path = Path(text).expanduser()
    if not path.is_file():
        raise KvchatError(
            "input",
            f"{clean(text)} is neither a file nor one of {', '.join(GEOMETRIES)}",
            *(f"--dummy {name}" for name in GEOMETRIES),
            "--dummy FOLDER/config.json",
        )
    return str(path), ModelConfig.from_dict(read_json(path), str(path))
