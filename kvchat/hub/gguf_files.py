"""GGUF files by name: which there are in a folder, and what a model is called."""

import re
from collections.abc import Iterable
from pathlib import Path

PART = re.compile(r"-(\d{5})-of-(\d{5})$")
# What a file's name says of its format: Q4_K_M, IQ4_XS, UD-Q4_K_XL, BF16.
TAG = re.compile(
    r"(?<![a-z0-9])((?:ud-)?i?q\d_[a-z0-9_]+|tq\d_\d|mxfp4(?:_moe)?|bf16|f16|fp16|f32)(?![a-z0-9])",
    re.IGNORECASE,
)
PROJECTOR = re.compile(r"mmproj|imatrix", re.IGNORECASE)  # of images; statistics: no models


def stem(name: str) -> str:
    """A file's name without `.gguf` and, of a split one, without its number."""
    return PART.sub("", re.sub(r"\.gguf$", "", name, flags=re.IGNORECASE))


def tag(name: str) -> str:
    """What a file's name says of its format, in capitals; empty if it says nothing."""
    found = TAG.findall(stem(name.rpartition("/")[2]))
    return found[-1].upper() if found else ""


def models(names: Iterable[str]) -> dict[str, list[str]]:
    """Models among names of files: each with all of its parts, by the name without a number.

    Names may have folders before them, which tell two models apart.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.lower().endswith(".gguf") and not PROJECTOR.search(name.rpartition("/")[2]):
            found.setdefault(stem(name), []).append(name)
    return found


def models_in(folder: Path, deep: bool = False) -> dict[str, Path]:
    """The first part of every model in a folder, by name; `deep`: in the folders below too."""
    pattern = "**/*.[gG][gG][uU][fF]" if deep else "*.[gG][gG][uU][fF]"
    try:
        files = {str(path.relative_to(folder)): path for path in folder.glob(pattern)}
    except OSError:
        return {}
    return {name: files[parts[0]] for name, parts in models(files).items()}
