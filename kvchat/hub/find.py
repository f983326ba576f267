"""Finds a model by name: a folder, a GGUF file, a name of `kvchat models`, an alias, a repository
in the Hugging Face cache, a model of ollama. Nothing is downloaded."""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from kvchat.engine.gguf import is_gguf
from kvchat.engine.model.read import load_config
from kvchat.engine.sizes import reserve_of
from kvchat.errors import KvchatError
from kvchat.hub import catalog, gguf_files, ollama
from kvchat.hub.places import (
    DEMO,
    MODEL_FOLDERS,
    Aliases,
    Missing,
    at_hand,
    demo_folder,
    in_cache,
    one_of,
    under_models,
)
from kvchat.terminal.text import clean

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
SHOWN = 8  # names in an error
QUANTISED = re.compile(rf"({REPOSITORY.pattern}):[\w./-]+")  # org/repo:Q4_K_M


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


def demo_model() -> Model:
    """The bundled model: inside the installed package, or in the checkout."""
    return Model(DEMO, demo_folder())


def find_model(
    name: str | None, aliases: Aliases | None = None, revision: str | None = None
) -> Model:
    """The model for `--model`: a path, a name, or the demo model for None.

    `revision` chooses among those in the Hugging Face cache. Raises KvchatError("model") if there
    is none of that name here.
    """
    aliases = aliases or {}
    if name is None or (name == DEMO and name not in aliases):
        return demo_model()
    if name in aliases:
        return _aliased(name, aliases, revision)
    under = [top / each for each in (name, f"{name}.gguf") for top in MODEL_FOLDERS]
    there = _existing(name, *under)
    if there is not None:
        return at(there)
    return _by_name(name, aliases, revision)


def at(path: Path) -> Model:
    """The model at a path: a folder with config.json, a GGUF file, or a folder with one.

    Raises KvchatError("model").
    """
    shown = clean(str(path))
    if is_gguf(path):
        of_ollama = ollama.name_of(path) if path.name.startswith("sha256-") else None
        return Model(of_ollama or gguf_files.stem(path.name), path)
    if path.is_dir():
        name, files = path.resolve().name, gguf_files.models_in(path)
        if files and not any(path.glob("*.safetensors")):
            return Model(
                name, one_of(shown, {f"{shown}/{file.name}": file for file in files.values()})
            )
        if not (path / "config.json").is_file():
            raise KvchatError(
                "model", f"{shown} has neither config.json nor a GGUF file", "kvchat models"
            )
        return Model(name, path)
    beside = (path.parent / "config.json").is_file()
    raise KvchatError(
        "model",
        f"{shown} is no model: that is a GGUF file, or a folder with config.json and safetensors",
        *([f"-m {clean(str(path.parent))}"] if beside else ["kvchat models"]),
        f"-f {shown}  (if it is the document)",
    )


def _by_name(name: str, aliases: Aliases, revision: str | None) -> Model:
    """A model that is no path. Raises KvchatError("model"), `Missing` for what can be pulled."""
    if REPOSITORY.fullmatch(name) or QUANTISED.fullmatch(name):
        try:
            return Model(name.split("/")[1], in_cache(name, revision))
        except Missing:
            manifest = ollama.manifest_of(name)
            if manifest is None:
                raise
            return Model(name, ollama.weights_of(manifest))
    manifest = ollama.manifest_of(name.removeprefix(ollama.PREFIX))
    if name.startswith(ollama.PREFIX):
        if manifest is None:
            raise KvchatError(
                "model",
                f"{clean(name)} is not among the models of ollama ({_listed('ollama', aliases)})",
                *(f"-m {each}" for each in _tags_of(name, aliases)),
                f"ollama pull {clean(name.removeprefix(ollama.PREFIX))}",
                "kvchat models",
            )
        return Model(name.removeprefix(ollama.PREFIX), ollama.weights_of(manifest))
    here = [found for found in at_hand(aliases) if not found.why]
    same = [found for found in here if found.name.lower() == name.lower()]
    if same:
        return Model(same[0].name, same[0].path)
    if manifest is not None:
        return Model(name, ollama.weights_of(manifest))
    if entry := catalog.entry(name):
        for found in catalog.matching(entry, here):
            if readable(found.path):
                return Model(found.name, found.path)
        raise Missing(entry.source, None, pull=entry.name)
    able = [clean(found.name) for found in here if readable(found.path)]
    close = get_close_matches(name, [*able, *(each.name for each in catalog.entries())], n=3)
    more = f" and {len(able) - SHOWN} more" if len(able) > SHOWN else ""
    raise KvchatError(
        "model",
        f"no model {clean(name)!r}: neither a path nor a name of `kvchat models` "
        f"(there: {', '.join(able[:SHOWN])}{more})",
        *(f"-m {each}" for each in close),
        "-m /path/to/folder, or model.gguf",
        "kvchat models",
    )


def _listed(place: str, aliases: Aliases) -> str:
    names = [clean(found.name) for found in at_hand(aliases) if found.place == place]
    return f"there: {', '.join(names)}" if names else "none is here"


def _tags_of(name: str, aliases: Aliases) -> list[str]:
    """The models of ollama that differ from a name in their tag only (`qwen` and `qwen:0.5b`)."""
    stem = ollama.PREFIX + name.removeprefix(ollama.PREFIX).partition(":")[0]
    names = [clean(found.name) for found in at_hand(aliases) if found.place == "ollama"]
    return [each for each in names if each.startswith(f"{stem}:")]


def readable(path: Path) -> bool:
    """Whether kvchat reads the model at a path."""
    try:
        load_config(path)
    except KvchatError:
        return False
    return True


def longer_windows(needed: int) -> list[str]:
    """Local models whose context window takes `needed` tokens, as ways out."""
    ways = []
    for found in under_models():
        try:
            limit = load_config(found.path).context_limit
        except KvchatError:
            continue
        if found.name != DEMO and needed + reserve_of(limit) <= limit:
            ways.append(f"-m {found.name}  (a context window of {limit:,} tokens)")
    return ways or ["a model with a longer context window: -m NAME"]


def _existing(name: str, *others: Path) -> Path | None:
    """The first path that exists, of what somebody gave and others. Raises KvchatError("model")."""
    try:
        return next((path for path in (Path(name).expanduser(), *others) if path.exists()), None)
    except (OSError, RuntimeError, ValueError) as error:  # too long, ~nobody, a zero byte
        reason = getattr(error, "strerror", None) or error
        raise KvchatError("model", f"{clean(name)[:80]} is not a model: {reason}") from None


def _aliased(name: str, aliases: Aliases, revision: str | None) -> Model:
    place = aliases[name]
    if "repo" in place:
        return Model(name, in_cache(place["repo"], revision))
    path = _existing(place["path"])
    if path is None:
        raise KvchatError(
            "model", f"[models.{name}] of config.toml: {clean(place['path'])} does not exist"
        )
    return Model(name, at(path).path)
