"""What a model of this machine is, read from its headers alone: family, parameters, format, window,
and whether it fits. No torch."""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from kvchat.engine.gguf import is_gguf
from kvchat.engine.gguf.file import GGUF
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.model.json_values import read_json
from kvchat.engine.model.read import load_config
from kvchat.engine.sizes import ITEM_BYTES
from kvchat.engine.weights.bits import refused, weights_bytes
from kvchat.errors import KvchatError
from kvchat.files import is_regular
from kvchat.hub.gguf_files import tag
from kvchat.hub.places import DEMO, Found
from kvchat.machine.fit import Room, needed

# of `general.file_type`, for files whose names do not tell (blobs of ollama)
FILE_TYPES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K"},
    **{11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S"},
    **{17: "Q5_K_M", 18: "Q6_K", 25: "IQ4_NL", 30: "IQ4_XS", 32: "BF16"},
}
SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


@dataclass(frozen=True)
class Described:
    """A model: `reason` says why it cannot be loaded, and is empty if it can.

    `held` bytes are its weights in memory, `needed` a chat about a document; `fits` is `yes`,
    `int4` (with `--weights int4`) or `no`, and empty where it cannot be loaded.
    """

    name: str
    path: Path
    place: str
    family: str = ""
    parameters: int = 0
    format: str = ""
    bytes: int = 0
    window: int = 0
    chat: bool = False
    held: int = 0
    needed: int = 0
    fits: str = ""
    reason: str = ""

    @property
    def toy(self) -> bool:
        """Whether it is the bundled model, which reads its own small world only."""
        return self.place == "bundled" or self.path.name in (DEMO, "demo_model")


def described(found: Found, room: Room, tokens: int | None = None) -> Described:
    """A model that was found, for a document of `tokens` tokens; nothing is raised."""
    model = Described(found.name, found.path, found.place, reason=found.why)
    if found.why:
        return model
    try:
        model = _file(model) if is_gguf(model.path) else _folder(model)
        return _judged(model, load_config(model.path), room, tokens)
    except KvchatError as error:
        return replace(model, reason=_short(error, model.path))
    except OSError as error:  # another user's, or a disk that fails
        return replace(model, reason=error.strerror or str(error))


def _file(model: Described) -> Described:
    """What the header of a GGUF file says. Raises KvchatError("model")."""
    gguf = GGUF(model.path)
    stored = Counter[str]()
    for info in gguf.tensors.values():
        stored[info.block.name] += prod(info.shape)
    usual = stored.most_common(1)[0][0] if stored else ""
    return replace(
        model,
        family=str(gguf.get("general.architecture", "")),
        parameters=stored.total(),
        format=tag(model.path.name) or FILE_TYPES.get(gguf.get("general.file_type", -1), usual),
        bytes=gguf.size,
        chat="tokenizer.chat_template" in gguf,
    )


def _folder(model: Described) -> Described:
    """What the files of a folder say. Raises KvchatError("model")."""
    folder = model.path
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    template = (folder / "chat_template.jinja").is_file()
    with suppress(OSError):
        tokenizer = folder / "tokenizer_config.json"
        if is_regular(tokenizer):
            template = template or b'"chat_template"' in tokenizer.read_bytes()
    raw = read_json(folder / "config.json")
    kind = str(raw.get("dtype") or raw.get("torch_dtype") or "float32")
    model = replace(
        model,
        family=str(raw.get("model_type", "")),
        format=SHORT.get(kind, kind),
        bytes=stored,
        chat=template,
    )
    return model if stored else replace(model, reason="no safetensors")


def _judged(model: Described, config: ModelConfig, room: Room, tokens: int | None) -> Described:
    """With its window, and whether it fits."""
    itemsize = ITEM_BYTES[config.dtype]
    held = weights_bytes(config, itemsize, "auto")
    wanted = needed(config, held, room, tokens)
    fits = "yes" if wanted <= room.free else "no"
    if fits == "no" and not refused(config, "int4"):
        small = wanted - held + weights_bytes(config, itemsize, "int4")
        fits = "int4" if small <= room.free else "no"
    return replace(
        model,
        family=config.family,
        parameters=model.parameters or config.parameters,
        window=config.context_limit,
        held=held,
        needed=wanted,
        fits="" if model.reason else fits,
    )


def _short(error: KvchatError, path: Path) -> str:
    """What is wrong with a model, without the path that stands beside it."""
    text = error.message
    for name in (f"{path / 'config.json'}", f"{path}"):
        text = text.removeprefix(f"{name}: ").removeprefix(f"{name} ")
    return text
