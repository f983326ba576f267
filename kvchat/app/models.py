"""Finds the folder of a model by name. Knows no weights."""

from dataclasses import dataclass
from pathlib import Path

from kvchat.app.text import clean
from kvchat.errors import KvchatError

PACKAGE = Path(__file__).resolve().parent.parent
CHECKOUT = PACKAGE.parent
MODEL_FOLDERS = (Path("models"), CHECKOUT / "models")


@dataclass(frozen=True)
class Model:
    """A model's folder and the name it goes by."""

    name: str
    folder: Path


def demo_model() -> Model:
    """The bundled model: inside the installed package, or in the checkout."""
    for folder in (PACKAGE / "demo_model", CHECKOUT / "models" / "demo"):
        if (folder / "config.json").exists():
            return Model("demo", folder)
    raise KvchatError("model", "the bundled demo model is missing from this installation", "-m DIR")


def find_model(name: str | None) -> Model:
    """The model for `--model`: a folder, a name under models/, or the demo model for None.

    Raises KvchatError("model") if there is none of that name.
    """
    if name is None or name == "demo":
        return demo_model()
    try:
        given = Path(name).expanduser()
        folders = [f for f in (given, *(parent / name for parent in MODEL_FOLDERS)) if f.is_dir()]
    except (OSError, RuntimeError, ValueError) as error:  # too long, ~nobody, a zero byte
        raise KvchatError("model", f"{clean(name)[:80]} is not a model: {error}") from None
    if folders:
        if not (folders[0] / "config.json").is_file():
            raise KvchatError("model", f"{clean(str(folders[0]))} has no config.json")
        return Model(folders[0].resolve().name, folders[0])
    if given.is_file():
        raise KvchatError(
            "model",
            f"{clean(name)} is a file; a model is a folder with config.json and safetensors",
            f"-m {given.parent}",
            f"-f {clean(name)}  (if it is the document)",
        )
    known = sorted(
        {entry.parent.name for parent in MODEL_FOLDERS for entry in parent.glob("*/config.json")}
    )
    raise KvchatError(
        "model",
        f"no model {clean(name)!r}: not a folder, and not under models/ "
        f"(there: {', '.join(known) or 'none'})",
        "-m /path/to/folder",
        "leave --model out to use the bundled demo model",
    )
