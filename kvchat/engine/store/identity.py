"""What a cached document belongs to: a digest of everything that decides its entries."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from kvchat import __version__
from kvchat.engine.engine import Engine
from kvchat.engine.methods.base import Method
from kvchat.engine.sizes import Streamed
from kvchat.engine.store import FORMAT, tokenizer_digest
from kvchat.engine.weights.checkpoint import find_files

SAMPLES, BLOCK = 16, 2**12  # of every shard: blocks that are read, and their bytes
Parts = dict[str, str]


class Identity:
    """What decides the entries of every document that a loaded model prefills, hashed once.

    `folder` is the model's. Raises OSError if it is gone since it was loaded.
    """

    def __init__(self, engine: Engine, folder: Path):
        self._model = {
            "format": str(FORMAT),
            "kvchat": __version__,
            "weights": weights_digest(folder),
            "config": _digest(repr(engine.config).encode()),
            "tokenizer": tokenizer_digest(folder),
            "computation": computation(engine),
            "fitted": fitted(engine),
        }

    def parts(
        self,
        ids: Sequence[int],
        method: Method | None = None,
        probes: Sequence[Sequence[int]] = (),
        streamed: Streamed | None = None,
    ) -> Parts:
        """What the entries of the document `ids` depend on, by name: alike if all parts are.

        `probes` are the token lists that the method scores with, `streamed` is how a document is
        read that is longer than the window. Without a method: what all entries depend on.
        """
        document = _digest(torch.tensor(ids, dtype=torch.int32).numpy().tobytes())
        parts = self._model | {"document": document}
        if method is not None:
            parts["method"] = repr(method)  # a dataclass: its class and every field
            parts["questions"] = _digest(json.dumps([list(probe) for probe in probes]).encode())
        if streamed is not None:
            parts["window"] = repr((streamed, streamed.parts, streamed.starts))
        return parts


def fingerprint(parts: Parts) -> str:
    """One name for all parts."""
    return _digest(json.dumps(parts, sort_keys=True).encode())[:32]


def weights_digest(folder: Path) -> str:
    """Of every shard its size and time, and blocks spread over it.

    A model that is moved, or found by another name, stays the same. A byte that changes
    between the blocks shows by the time alone.
    """
    digest = hashlib.sha256()
    for shard in find_files(folder):
        about = shard.stat()
        digest.update(f"{about.st_size}\0{about.st_mtime_ns}\0".encode())
        with shard.open("rb") as file:
            for number in range(SAMPLES):
                file.seek(max(about.st_size - BLOCK, 0) * number // (SAMPLES - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()


def computation(engine: Engine) -> str:
    """How the model computes: device, attention, and the kinds of its modules and tensors."""
    kinds = sorted({type(module).__qualname__ for module in engine.model.modules()})
    tensors = [*engine.model.named_parameters(), *engine.model.named_buffers()]
    described = [f"{name} {type(t).__name__} {t.dtype} {tuple(t.shape)}" for name, t in tensors]
    about = [engine.device.type, type(engine.backend).__qualname__, str(engine.dtype)]
    return _digest("\n".join([*about, *kinds, *described]).encode())


def fitted(engine: Engine) -> str:
    """What was fitted to the model: its gate and its maps, which choose or stand for entries."""
    found = [] if engine.gate is None else [engine.gate.weight, engine.gate.end]
    found += [tensor for each in engine.features or [] for part in each for tensor in part]
    return _digest(b"".join(t.cpu().contiguous().numpy().tobytes() for t in found))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
