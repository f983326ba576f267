"""Finds the folder of a model by name: a folder, models/NAME, an alias of the config, or a
repository in the Hugging Face cache. Nothing is downloaded."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvchat.engine.model.read import load_config
from kvchat.engine.sizes import reserve_of
from kvchat.errors import KvchatError
from kvchat.terminal.text import clean

PACKAGE = Path(__file__).resolve().parent.parent
CHECKOUT = PACKAGE.parent
MODEL_FOLDERS = (Path("models"), CHECKOUT / "models")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
DEMO = "demo"  # reads documents of its own small world only
Aliases = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Model:
    """A model and the name it goes by: `path` is its folder or a GGUF file (of a split one any).

    Another folder may have its tokenizer.
    """

    name: str
    path: Path
    tokenizer: Path | None = None
    template: str | None = None  # a file with a chat template; empty: none is used

    @property
    def text_path(self) -> Path:
        """Where the tokenizer is: a folder, or the GGUF file that has one."""
        return self.tokenizer or self.path

    @property
    def place(self) -> Path:
        """The path, absolute.

        A link to a file is not followed: in the Hugging Face cache it leads to a blob without the
        name, and the parts of a split model lie beside each other by name only.
        """
        if self.path.is_dir():
            return self.path.resolve()
        return self.path.parent.resolve() / self.path.name


class Missing(KvchatError):
    """A repository that is not in the Hugging Face cache."""

    def __init__(self, repository: str, revision: str | None):
        at, way = (f" at {clean(revision)}", f" --revision {revision}") if revision else ("", "")
        super().__init__(
            "model",
            f"{repository}{at} is not in the Hugging Face cache; nothing is downloaded unasked",
            f"kvchat models pull {repository}{way}",
        )
        self.repository = repository


def demo_model() -> Model:
    """The bundled model: inside the installed package, or in the checkout."""
    for folder in (PACKAGE / "demo_model", CHECKOUT / "models" / "demo"):
        if (folder / "config.json").exists():
            return Model(DEMO, folder)
    raise KvchatError("model", "the bundled demo model is missing from this installation", "-m DIR")


def find_model(
    name: str | None, aliases: Aliases | None = None, revision: str | None = None
) -> Model:
    """The model for `--model`: a folder, a name, or the demo model for None.

    `revision` chooses among those in the Hugging Face cache. Raises KvchatError("model") if there
    is none of that name here.
    """
    aliases = aliases or {}
    if name is None or (name == DEMO and name not in aliases):
        return demo_model()
    if name in aliases:
        return _aliased(name, aliases[name], revision)
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
    if REPOSITORY.fullmatch(name):
        return Model(name.split("/")[1], cached(name, revision))
    raise KvchatError(
        "model",
        f"no model {clean(name)!r}: not a folder, not under models/, no alias in config.toml "
        f"(there: {', '.join([*local_models(), *aliases]) or 'none'})",
        "-m /path/to/folder",
        "kvchat models",
        "leave --model out to use the bundled demo model",
    )


def local_models() -> dict[str, Path]:
    """Folders under models/ that hold a config.json, by name."""
    found = [file.parent for parent in MODEL_FOLDERS for file in parent.glob("*/config.json")]
    return {folder.name: folder for folder in sorted(found, reverse=True)}


def longer_windows(needed: int) -> list[str]:
    """Local models whose context window takes `needed` tokens, as ways out."""
    ways = []
    for name, folder in local_models().items():
        try:
            limit = load_config(folder).context_limit
        except KvchatError:
            continue
        if name != DEMO and needed + reserve_of(limit) <= limit:
            ways.append(f"-m {name}  (a context window of {limit:,} tokens)")
    return ways or ["a model with a longer context window: -m NAME"]


def cached(repository: str, revision: str | None = None) -> Path:
    """The folder of a repository in the Hugging Face cache, at `main` or another branch, a tag, a
    commit or its beginning. Raises Missing."""
    # heavy only in comparison with `--help`
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, "config.json", revision=revision)
    if isinstance(found, str):
        return Path(found).parent
    commits = _snapshots(repository, revision) if revision else []
    if len(commits) != 1:
        raise Missing(repository, revision)
    return commits[0]


def cache() -> Iterator[tuple[str, Path]]:
    """Models of the Hugging Face cache: `main` of each, else the one that came last."""
    from huggingface_hub import constants

    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        repository = folder.name.removeprefix("models--").replace("--", "/")
        try:
            yield repository, cached(repository)
        except Missing:
            if there := _snapshots(repository):
                yield repository, max(there, key=lambda snapshot: snapshot.stat().st_mtime)


def _snapshots(repository: str, commit: str = "") -> list[Path]:
    """Commits of a repository in the Hugging Face cache that begin so and have a config.json."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots"
    found = folder.iterdir() if folder.is_dir() else ()
    return [s for s in found if s.name.startswith(commit) and (s / "config.json").exists()]


def _aliased(name: str, place: Mapping[str, Any], revision: str | None) -> Model:
    if "repo" in place:
        return Model(name, cached(place["repo"], revision))
    folder = Path(place["path"]).expanduser()
    if not (folder / "config.json").is_file():
        raise KvchatError(
            "model", f"[models.{name}] of config.toml: {clean(str(folder))} has no config.json"
        )
    return Model(name, folder)
