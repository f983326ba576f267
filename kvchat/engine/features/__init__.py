"""Maps of LESS that were fitted to a model, kept by its digest beside the gates."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as packed
from torch import Tensor

from kvchat.engine.cache.low_rank import Answers, Asks, Features
from kvchat.engine.gates import digest, digest_of, folder
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.model.decoder import Decoder
from kvchat.engine.sizes import RANK
from kvchat.engine.store.atomic import NewFile
from kvchat.engine.weights.checkpoint import norms
from kvchat.errors import KvchatError

SUFFIX = ".less"
KIND = "kvchat maps"
SHIFT = "asks.shift"  # a logarithm, and large
NAMES = "asks.inner", "asks.outer", "asks.shift", "answers.inner", "answers.outer", "answers.mix"


def flat(features: Features) -> list[Tensor]:
    """The tensors of a layer's maps, in the order of `NAMES`."""
    return [*features.asks, *features.answers]


def of(tensors: list[Tensor]) -> Features:
    """The inverse of `flat`."""
    return Features(Asks(*tensors[:3]), Answers(*tensors[3:]))


def exists(path: Path, config: ModelConfig) -> bool:
    """Whether a checkpoint has maps that are in order: of it nothing but its norms is read."""
    return _found(config, digest(config, norms(path, config))) is not None


def find(model: Decoder) -> list[Features] | None:
    """The maps of a model, of every layer that attends to all tokens; None if there are none."""
    tensors = _found(model.config, digest_of(model))
    if tensors is None:
        return None
    every = [tensors[name].to(model.device) for name in NAMES]
    return [of([stack[layer] for stack in every]) for layer in range(len(every[0]))]


def _found(config: ModelConfig, name: str) -> dict[str, Tensor] | None:
    with suppress(OSError, SafetensorError, KeyError):
        tensors, _ = load(folder() / (name + SUFFIX))
        return tensors if _fit(tensors, config) else None
    return None


def give(model: Decoder, found: list[Features] | None) -> None:
    """Give the blocks of a model their maps. Raises KvchatError("usage") if there are none."""
    if found is None:
        raise KvchatError(
            "usage",
            "there are no maps for this model, and less needs them",
            "kvchat calibrate MODEL --for less  (fits them: some minutes)",
            "--method h2o  (the same entries, without a state of the others)",
        )
    for block, features in zip(model.full_blocks, found, strict=True):
        block.features = features


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and what is said of them. Raises OSError, SafetensorError or KeyError for
    what are no maps."""
    with safe_open(path, "pt") as file:
        about = dict(file.metadata() or {})
        if about.pop("kind", "") != KIND:
            raise KeyError(KIND)
        return {name: file.get_tensor(name).float() for name in NAMES}, about


def save(path: Path, layers: list[Features], about: Mapping[str, Any]) -> None:
    """Write the maps of all layers. Raises OSError."""
    stacks = zip(*map(flat, layers), strict=True)
    tensors = {
        name: torch.stack(stack).to(torch.float32 if name == SHIFT else torch.bfloat16)
        for name, stack in zip(NAMES, stacks, strict=True)
    }
    text = {name: str(value) for name, value in about.items()} | {"kind": KIND}
    with NewFile(path) as file:
        file.write(packed(tensors, text))


def _fit(tensors: Mapping[str, Tensor], config: ModelConfig) -> bool:
    """Whether maps have the shapes that a model needs."""
    layers, dim = len(config.full_layers), config.head_dim
    hidden = tensors[NAMES[0]].shape[-1]
    wanted = [
        (layers, heads, *shape)
        for heads, shapes in (
            (config.num_heads, ((dim, hidden), (hidden, RANK), ())),
            (config.num_kv_heads, ((dim, hidden), (hidden, RANK), (RANK, RANK))),
        )
        for shape in shapes
    ]
    return [tensors[name].shape for name in NAMES] == wanted
