"""Models that ollama has pulled: manifests name blobs, one of which is a GGUF file.

Only the weights' blob is read. Its Go template and its parameters are left alone: the GGUF file
has the chat template of its model in Jinja, which is the form that kvchat renders.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kvchat.errors import KvchatError
from kvchat.terminal.text import clean

PREFIX = "ollama:"
REGISTRY, LIBRARY, LATEST = "registry.ollama.ai", "library", "latest"
KIND = "application/vnd.ollama.image."
SERVICE = Path("/usr/share/ollama/.ollama/models")  # where the service of Linux keeps them


def folders() -> list[Path]:
    """Where models may be: `$OLLAMA_MODELS`, or the user's and the service's."""
    if own := os.environ.get("OLLAMA_MODELS"):
        return [Path(own).expanduser()]
    return [Path.home() / ".ollama" / "models", SERVICE]


def models() -> Iterator[tuple[str, Path]]:
    """Names, as ollama prints them, and manifests."""
    for folder in folders():
        top = folder / "manifests"
        try:
            files = sorted(path for path in top.glob("*/*/*/*") if path.is_file())
        except OSError:  # another user's
            continue
        for file in files:
            registry, owner, name, version = file.relative_to(top).parts
            place = "" if owner == LIBRARY else f"{owner}/"
            place = place if registry == REGISTRY else f"{registry}/{owner}/"
            yield f"{place}{name}:{version}", file


def manifest_of(name: str) -> Path | None:
    """The manifest of `llama3.2:1b`, `user/name:tag` or `hf.co/user/name:tag`, if it is here."""
    first, _, version = name.rpartition(":") if ":" in name else (name, "", LATEST)
    parts = [part for part in first.split("/") if part not in ("", ".", "..")]
    if not 1 <= len(parts) <= 3 or "/" in version or version in ("", ".", ".."):
        return None
    place = [REGISTRY, LIBRARY][: 3 - len(parts)] + parts
    for folder in folders():
        file = folder.joinpath("manifests", *place, version)
        try:
            if file.is_file():
                return file
        except (OSError, ValueError):  # another user's; a zero byte
            continue
    return None


def name_of(blob: Path) -> str | None:
    """The model whose weights are that blob: a saved chat knows the file alone."""
    for name, manifest in models():
        with suppress(KvchatError):
            if weights_of(manifest) == blob:
                return name
    return None


def weights_of(manifest: Path) -> Path:
    """The GGUF file that a manifest names. Raises KvchatError("model")."""
    name = clean(str(manifest))
    try:
        layers = json.loads(manifest.read_bytes())["layers"]
        kinds = {str(layer["mediaType"]).removeprefix(KIND): layer["digest"] for layer in layers}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KvchatError(
            "model", f"{name} is no manifest of ollama ({error})", "ollama pull NAME again"
        ) from None
    if "adapter" in kinds:  # a projector for images is left out: text alone goes in
        raise KvchatError(
            "model",
            f"{name} has an adapter (LoRA) beside its weights, which is not supported",
            "a model without an adapter",
        )
    if "model" not in kinds:
        raise KvchatError("model", f"{name} names no weights in GGUF")
    digest = str(kinds["model"])
    blob = manifest.parents[4] / "blobs" / digest.replace(":", "-").replace("/", "-")
    if not blob.is_file():
        raise KvchatError(
            "model", f"{name}: the weights are missing ({blob.name})", "ollama pull NAME again"
        )
    return blob
