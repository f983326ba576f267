"""Where models are on this machine: folders of kvchat and of the programs beside it. Everything is
found by looking at names; nothing is downloaded, and no checkpoint is opened."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from kvchat.errors import KvchatError
from kvchat.hub import gguf_files, ollama

PACKAGE = Path(__file__).resolve().parent.parent
CHECKOUT = PACKAGE.parent
MODEL_FOLDERS = (Path("models"), CHECKOUT / "models")
DEMO = "demo"  # reads documents of its own small world only
Aliases = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Found:
    """A model by the name that `-m` takes: `path` is a folder or a GGUF file; of a split one the
    first part. `why` says why there is none at the path."""

    name: str
    path: Path
    place: str
    why: str = ""


def demo_folder() -> Path:
    """The bundled model: inside the installed package, or in the checkout."""
    for folder in (PACKAGE / "demo_model", CHECKOUT / "models" / DEMO):
        if (folder / "config.json").exists():
            return folder
    raise KvchatError("model", "the bundled demo model is missing from this installation", "-m DIR")


def at_hand(aliases: Aliases | None = None) -> Iterator[Found]:
    """Every model of this machine; of two with one name the one that `-m` takes."""
    known: set[str] = set()
    for found in chain(named(aliases or {}), under_models(), hub_cache(), _programs()):
        if found.name not in known:
            known.add(found.name)
            yield found


def named(aliases: Aliases) -> Iterator[Found]:
    """The bundled model and the aliases of config.toml."""
    for name, place in aliases.items():
        if "path" in place:
            path = Path(place["path"]).expanduser()
            yield Found(name, path, "config.toml", "" if path.exists() else "not there")
        else:
            try:
                yield Found(name, in_cache(place["repo"]), "config.toml")
            except KvchatError:
                yield Found(name, Path(place["repo"]), "config.toml", "not downloaded")
    if DEMO not in aliases:
        yield Found(DEMO, demo_folder(), "bundled")


def under_models() -> Iterator[Found]:
    """Folders and GGUF files under `models/`, here and in the checkout."""
    for top in MODEL_FOLDERS:
        folders = {file.parent.name: file.parent for file in top.glob("*/config.json")}
        for name, folder in sorted(folders.items()):
            yield Found(name, folder, "models/")
        for name, file in gguf_files.models_in(top).items():
            yield Found(name, file, "models/")
        for inside in sorted(top.glob("*/")):
            if inside.name not in folders:
                files = gguf_files.models_in(inside)
                for name, file in files.items():
                    alone = len(files) == 1
                    yield Found(inside.name if alone else f"{inside.name}/{name}", file, "models/")


def hub_folder() -> Path:
    """The Hugging Face cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def hub_cache() -> Iterator[Found]:
    """Models of the Hugging Face cache: `main` of each repository, else what came last."""
    for folder in sorted(hub_folder().glob("models--*--*")):
        repository = folder.name.removeprefix("models--").replace("--", "/")
        snapshot = snapshot_of(repository)
        if snapshot is None:
            there = snapshots(repository)
            snapshot = max(there, key=lambda each: each.stat().st_mtime) if there else None
        if snapshot is not None:
            yield from in_snapshot(repository, snapshot)


def in_snapshot(repository: str, snapshot: Path) -> Iterator[Found]:
    """The models of one snapshot: its folder, or its GGUF files as `org/repo:Q4_K_M`."""
    files = gguf_files.models_in(snapshot, deep=True)
    if (snapshot / "config.json").is_file() and (not files or any(snapshot.glob("*.safetensors"))):
        yield Found(repository, snapshot, "Hugging Face cache")
        return
    tags = [gguf_files.tag(name) for name in files]
    for name, path in files.items():
        short = gguf_files.tag(name)
        told = short if short and tags.count(short) == 1 else name
        yield Found(f"{repository}:{told}", path, "Hugging Face cache")


def in_cache(repository: str, revision: str | None = None) -> Path:
    """A repository's folder or its GGUF file in the Hugging Face cache; `org/repo:Q5_K_M` names
    one of several.

    Raises KvchatError("model"): `Missing`, or a list where several could be meant.
    """
    name, _, wanted = repository.partition(":")
    commit = snapshot_of(name, revision)
    if commit is None:
        raise Missing(repository, revision)
    found = {each.name: each.path for each in in_snapshot(name, commit)}
    if not wanted:
        return one_of(name, found)
    for full, path in found.items():
        if wanted.lower() in (full.partition(":")[2].lower(), gguf_files.tag(path.name).lower()):
            return path
    raise Missing(repository, revision, [*found])


def snapshot_of(repository: str, revision: str | None = None) -> Path | None:
    """The folder of a repository in the Hugging Face cache, at `main` or another branch, a tag, a
    commit or the only one that begins so."""
    folder = hub_folder() / f"models--{repository.replace('/', '--')}"
    try:
        commit = (folder / "refs" / (revision or "main")).read_text().strip()
    except (OSError, ValueError):
        commit = ""
    there = snapshots(repository, commit) if commit else []
    if not there and revision:
        there = snapshots(repository, revision)
    return there[0] if len(there) == 1 else None


def snapshots(repository: str, commit: str = "") -> list[Path]:
    """Commits of a repository in the Hugging Face cache that begin so and hold a model."""
    folder = hub_folder() / f"models--{repository.replace('/', '--')}" / "snapshots"
    found = folder.iterdir() if folder.is_dir() else ()
    return [
        each
        for each in found
        if each.name.startswith(commit)
        and ((each / "config.json").exists() or gguf_files.models_in(each, deep=True))
    ]


class Missing(KvchatError):
    """A repository that is not in the Hugging Face cache; `pull` is its short name."""

    def __init__(
        self,
        repository: str,
        revision: str | None,
        there: Sequence[str] = (),
        pull: str | None = None,
    ):
        at, way = (f" at {revision}", f" --revision {revision}") if revision else ("", "")
        has = f"; there: {', '.join(there)}" if there else ""
        super().__init__(
            "model",
            f"{repository}{at} is not in the Hugging Face cache{has}; nothing is downloaded "
            "unasked",
            f"kvchat models pull {pull or repository}{way}",
        )
        self.repository = repository


def one_of(what: str, found: Mapping[str, Path]) -> Path:
    """The only one of several GGUF files. Raises KvchatError("model") with all their names."""
    if len(found) == 1:
        return next(iter(found.values()))
    raise KvchatError(
        "model",
        f"{what} has {len(found)} models: {', '.join(found)}",
        *(f"-m {name}" for name in [*found][:8]),
        models=[*found],
    )


def lm_studio() -> list[Path]:
    """Folders in which LM Studio keeps models, PUBLISHER/REPO/*.gguf."""
    return [Path.home() / ".lmstudio" / "models", Path.home() / ".cache" / "lm-studio" / "models"]


def llama_cpp() -> list[Path]:
    """Folders in which llama.cpp keeps models."""
    if own := os.environ.get("LLAMA_CACHE"):
        return [Path(own).expanduser()]
    if sys.platform == "darwin":
        return [Path.home() / "Library" / "Caches" / "llama.cpp"]
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return [Path(base) / "llama.cpp"]


def _programs() -> Iterator[Found]:
    """Models of LM Studio, llama.cpp and ollama."""
    for place, folders in (("LM Studio", lm_studio()), ("llama.cpp", llama_cpp())):
        for folder in folders:
            for name, path in gguf_files.models_in(folder, deep=True).items():
                yield Found(name.rpartition("/")[2], path, place)
    for name, manifest in ollama.models():
        try:
            yield Found(f"{ollama.PREFIX}{name}", ollama.weights_of(manifest), "ollama")
        except KvchatError as error:
            why = error.message.removeprefix(f"{manifest} ").removeprefix(f"{manifest}: ")
            yield Found(f"{ollama.PREFIX}{name}", manifest, "ollama", why)
