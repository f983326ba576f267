"""Gates: one linear map per layer that tells what an entry will be worth from its hidden state.

KVzap (arXiv 2601.07891): ridge regression from the attention block's normed input to the logarithm
of the score that a replay would give. So one prefill suffices where kvzip needs two.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from platformdirs import user_data_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as packed
from torch import Tensor

from kvchat.engine.model.config import ModelConfig
from kvchat.engine.model.decoder import Decoder
from kvchat.engine.store.atomic import NewFile
from kvchat.engine.weights.checkpoint import NORM, norms
from kvchat.errors import KvchatError

SHIPPED = Path(__file__).parent
SUFFIX = ".gate"
KIND = "kvchat gate"


class Scorer(Protocol):
    """What is asked while a prefill walks the layers."""

    def scores(self, layer: int, x: Tensor, after: int) -> Tensor:
        """What entries are worth, `[H, n]` fp32, of the normed inputs `x [n, hidden]` of a layer.

        `layer` counts those with full attention, `after` the entries of the document behind them.
        """


@dataclass(frozen=True)
class Gate:
    """The maps of a model, `weight [L, H, hidden + 1]` (the last column is the constant).

    What stands at the end of a document is worth more than its content tells, for some heads look
    at what is near: `end [L, H, N]` is added to the logarithms of the last N entries. `about`: the
    model's name, the texts, and R² per layer on text that was held out.
    """

    weight: Tensor
    end: Tensor
    about: dict[str, Any] = field(default_factory=dict)

    def scores(self, layer: int, x: Tensor, after: int) -> Tensor:
        """See `Scorer.scores`."""
        weight, end = self.weight[layer].to(x.device), self.end[layer].to(x.device)
        told = (x.float() @ weight[:, :-1].T + weight[:, -1]).T.contiguous()
        last = end.shape[1] - after  # of its offsets are for these entries
        if last > 0:
            own = min(last, len(x))
            told[:, len(x) - own :] += end[:, last - own : last]
        return told.clamp_(-60.0, 60.0).exp_()


def digest(config: ModelConfig, norms: Mapping[str, Tensor]) -> str:
    """Of the norms of a model and its shape.

    They are the same in every quantization of a checkpoint, and no two models share them.
    """
    shape = config.num_layers, config.num_kv_heads, config.hidden_size, config.vocab_size
    found = hashlib.sha256(repr(shape).encode())
    for name, weight in sorted(norms.items()):
        plain = weight.detach().to("cpu", torch.bfloat16).contiguous()
        found.update(name.encode() + plain.view(torch.int16).numpy().tobytes())
    return found.hexdigest()[:24]


def digest_of(model: Decoder) -> str:
    """The digest of a model that is loaded."""
    norms = {name: w for name, w in model.named_parameters() if name.endswith(NORM)}
    return digest(model.whole, norms)


def exists(path: Path, config: ModelConfig) -> bool:
    """Whether a checkpoint has a gate that is in order: of it nothing but its norms is read."""
    return _found(config, digest(config, norms(path, config))) is not None


def folder() -> Path:
    """Where gates are kept that were fitted on this machine."""
    return user_data_path("kvchat") / "gates"


def find(model: Decoder) -> Gate | None:
    """The gate of a model: one that was fitted here, or one that ships; None if there is none."""
    return _found(model.whole, digest_of(model))


def required(gate: Gate | None) -> Gate:
    """The gate of a model. Raises KvchatError("usage") if there is none."""
    if gate is None:
        raise KvchatError(
            "usage",
            "there is no gate for this model, and kvzap needs one",
            "kvchat calibrate MODEL  (fits one: some minutes)",
            "--method kvzip  (reads the document twice)",
        )
    return gate


def _found(config: ModelConfig, name: str) -> Gate | None:
    shape = len(config.full_layers), config.num_kv_heads, config.hidden_size + 1
    for root in (folder(), SHIPPED):
        with suppress(OSError, SafetensorError, KeyError):
            gate = load(root / (name + SUFFIX))
            if gate.weight.shape == shape and gate.end.shape[:2] == shape[:2]:
                return gate
    return None


def load(path: Path) -> Gate:
    """A gate from its file. Raises OSError, SafetensorError or KeyError for what is none."""
    with safe_open(path, "pt") as file:
        about = dict(file.metadata() or {})
        if about.pop("kind", "") != KIND:
            raise KeyError(KIND)
        return Gate(file.get_tensor("weight").float(), file.get_tensor("end").float(), about)


def save(gate: Gate, model: Decoder, where: Path | None = None) -> Path:
    """Write a gate where `find` looks for it. Raises OSError."""
    root = where or folder()
    path = root / (digest_of(model) + SUFFIX)
    about = {name: str(value) for name, value in gate.about.items()} | {"kind": KIND}
    with NewFile(path) as file:
        tensors = {"weight": gate.weight, "end": gate.end}
        file.write(packed({name: t.to(torch.float16) for name, t in tensors.items()}, about))
    return path


def every() -> Iterator[tuple[Path, Gate]]:
    """All gates that there are."""
    for root in (folder(), SHIPPED):
        for path in sorted(root.glob(f"*{SUFFIX}")):
            with suppress(OSError, SafetensorError, KeyError):
                yield path, load(path)
