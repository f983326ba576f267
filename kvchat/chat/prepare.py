"""What is known before torch is imported: the saved chat to go on with, the model and its config,
the documents. What can be refused is refused here, within a moment."""

from dataclasses import dataclass, replace
from typing import Any

from kvchat import __version__
from kvchat.chat import chatlog
from kvchat.chat.sources import SAVED, read_documents
from kvchat.documents import Document
from kvchat.engine.methods import METHODS
from kvchat.engine.methods.specs import method_name
from kvchat.engine.methods.specs import options as options_of
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.model.read import load_config
from kvchat.engine.weights.bits import INPUTS
from kvchat.errors import KvchatError
from kvchat.hub.find import Model
from kvchat.hub.offer import chosen_model, model_of, with_text
from kvchat.settings.options import LIVE, OPTIONS, SAVED_CHAT, Options
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import counted, size

# Options that a saved chat has with its document.
DOCUMENT = (
    *("system", "encoding", "pages", "loader", "clean", "overflow", "ctx_size"),
    *("tokenizer", "chat_template"),
)


@dataclass(frozen=True)
class Prepared:
    """A chat that can be opened; `saved` is the one that is gone on with."""

    options: Options
    model: Model
    config: ModelConfig
    files: list[Document]
    saved: chatlog.Saved | None = None


def prepare(options: Options, screen: Screen, piped: bool = True) -> Prepared:
    """Find chat, model and documents, and say what was found. Raises KvchatError.

    Without `piped` standard input is left alone.
    """
    saved = named(options)
    if saved is not None:
        screen.say(f"going on with {saved.title}: {counted(len(saved.turns), 'turn')}", "bold")
        options = restored(options, saved)
        known, its = known_options(options.method), saved.method.get("options", {})
        if gone := [f"{key}={value}" for key, value in its.items() if key not in known]:
            screen.warn(f"{options.method} has no longer the option {', '.join(gone)}: left out")
    if options.model is None:  # which one depends on the documents
        files = documents_of(options, screen, piped)
        model, options = chosen_model(options, files, screen)
    else:
        model, files = model_of(options, screen), None
    model = with_text(model, options)
    config = load_config(model.path)
    stored = f", weights in {options.weights}" if options.weights in INPUTS else ""
    screen.say(
        f"kvchat {__version__} · {model.name} ({config.family}, "
        f"{config.parameters / 1e6:,.1f} M parameters{stored})",
        "bold",
    )
    if files is None:
        files = documents_of(options, screen, piped)
    for file in files:
        pages = f", {len(file.places):,} {file.unit}" if len(file.places) > 1 else ""
        characters = f"{len(file.text):,} characters"
        screen.say(f"{file.title} · {size(file.size)}, {file.encoding}{pages}, {characters}")
    return Prepared(options, model, config, files, saved)


def documents_of(options: Options, screen: Screen, piped: bool) -> list[Document]:
    """The documents of the options, and of standard input if it is `piped`. Raises KvchatError."""
    return read_documents(options, screen) if options.files or piped else []


def named(options: Options) -> chatlog.Saved | None:
    """The saved chat that options name; None for a new one. Raises KvchatError("session")."""
    if options.last or options.resume:
        return chatlog.find(options.resume, former=True)
    if options.session:
        return chatlog.named(options.session)
    return None


def restored(options: Options, saved: chatlog.Saved) -> Options:
    """Options with everything that the saved chat knows and no flag says otherwise.

    Raises KvchatError("session") for a value that is not of its kind.
    """
    document, method = saved.document, saved.method
    by_flag = {name for name, origin in options.origins.items() if origin == "flag"}
    values: dict[str, Any] = {"model": saved.chat.get("folder")}
    values |= {name: document.get(name) for name in DOCUMENT}
    values |= {name: method.get(name) for name in ("tail_budget", "tail")}
    values |= {name: saved.settings[name] for name in LIVE if name in saved.settings}
    if "method" not in by_flag:
        values["method"] = method.get("name")
        known, its = known_options(str(method.get("name"))), method.get("options", {})
        pairs = [f"{key}={value}" for key, value in its.items() if key in known]
        values["method_options"] = [*pairs, *options.method_options]
        values["budget"] = method.get("budget") if method.get("name") != "full" else None
    taken = {
        name: _read(saved, name, value)
        for name, value in values.items()
        if value is not None and name not in by_flag - {"method_options"}
    }
    if not options.files:
        files = document.get("files", ())
        taken["files"] = [file["path"] or SAVED + file["name"] for file in files]
        taken["texts"] = {SAVED + file["name"]: file["text"] for file in files if "text" in file}
    origins = {**options.origins, **dict.fromkeys(taken, SAVED_CHAT)}
    return replace(options, **taken, origins=origins)


def _read(saved: chatlog.Saved, name: str, value: Any) -> Any:
    """A value of a saved chat, as one of config.toml is read. Raises KvchatError("session")."""
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(value)
    if type(value) is type(usual := getattr(Options, name, None)) and value == usual:
        return value  # whether or not it can be asked for
    try:
        if isinstance(value, list | dict):
            raise KvchatError("session", f"{name} is {value!r:.40}")
        return OPTIONS[name].kind.read(name, value)
    except KvchatError as error:
        raise KvchatError("session", f"{saved.path} is damaged: {error.message}") from None


def known_options(spec: str) -> set[str]:
    """Names of the options of a method; none for a method that there is not."""
    return set(options_of(method_name(spec))) if spec.split(":")[0] in METHODS else set()
