"""A compressed document as a file: saved after prefill, mapped and verified in place of it.

The file has what is kept of every layer, the token ids, and the logits of a short text after them:
a restored cache must give them again.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kvchat.engine.cache import HOMES, SEGMENTS
from kvchat.engine.cache.homes import home_of, placed
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.cache.segment import Segment
from kvchat.engine.cache.window import WindowLayer
from kvchat.engine.engine import Engine
from kvchat.engine.store import Refused
from kvchat.engine.store.contents import Contents, Shape, require_segment
from kvchat.engine.store.header import Header, describe
from kvchat.engine.store.tensors import Mapped, write

KIND = "kvchat reading"
PROBE = 8  # the document's last tokens, once more after it
# Relative RMS between the saved logits and those of the restored cache. Other threads sum in
# another order; other entries are off by tenths.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class Part(NamedTuple):
    """A segment taken apart, as it is now: its class' `load` makes another one of it."""

    kind: str
    span: tuple[int, int]
    tensors: dict[str, Tensor]

    def home(self, device: torch.device) -> str:
        """Where its entries are that queries choose among; `device` if there are none."""
        return home_of(self.tensors["pool"], device) if "pool" in self.tensors else HOMES[0]

    def segment(self) -> Segment:
        """A segment of these tensors."""
        module, cls = SEGMENTS[self.kind].split(":")
        found: Segment = getattr(import_module(module), cls).load(self.tensors, self.span)
        return found


class Layer(NamedTuple):
    """What a layer keeps of a document: segments, and the entries `[H, n, D]` of a live end.

    Layers that methods compress come first, then sliding ones, which have a live end alone.
    """

    parts: list[Part]
    keys: Tensor
    values: Tensor


def layers_of(cache: KVCache, tokens: int) -> list[Layer] | None:
    """What a cache keeps of its first `tokens` tokens; None if later ones cannot be told apart.

    Turns to come change none of it: they add entries behind these.
    """
    found: list[Layer] = []
    for layer in cache.layers:
        segments = [segment for segment in layer.segments if segment.span[1] <= tokens]
        live = tokens - (segments[-1].span[1] if segments else 0)
        if live and layer.tail.start != tokens - live:
            return None
        parts = [Part(s.kind, s.span, s.tensors()) for s in segments]
        found.append(Layer(parts, layer.tail.keys[:, :live], layer.tail.values[:, :live]))
    return found + [Layer([], *window.until(tokens)) for window in cache.windows.values()]


def save(
    path: Path,
    engine: Engine,
    layers: Sequence[Layer],
    ids: Sequence[int],
    fingerprint: str,
    about: Mapping[str, Any],
    stopped: Callable[[], bool] = lambda: False,
    saved: int = 0,
) -> None:
    """Save what is kept of the document `ids`, which takes `saved` positions less; `about` is for
    the person.

    Raises OSError, and Stopped if `stopped()` says so while it is written.
    """
    tensors = {
        "ids": torch.tensor(ids, dtype=torch.int32),
        "probe": probe(engine, layers, ids, saved),
    }
    for number, layer in enumerate(layers):
        for which, part in enumerate(layer.parts):
            for name, tensor in part.tensors.items():
                tensors[f"{number}.{which}.{name}"] = tensor
        if layer.keys.shape[1]:
            tensors[f"{number}.tail.k"] = layer.keys
            tensors[f"{number}.tail.v"] = layer.values
    segments = [
        [{"kind": p.kind, "span": p.span, "home": p.home(engine.device)} for p in layer.parts]
        for layer in layers
    ]
    write(path, tensors, describe(KIND, fingerprint, about, segments), stopped)


def load(
    path: Path, engine: Engine, ids: Sequence[int], fingerprint: str, saved: int = 0
) -> KVCache:
    """The cache of the document `ids` as it was saved; on a CPU its entries are mapped.

    It takes `saved` positions less than it has tokens.

    Of several ranks each has a file of its part. Raises Refused with the reason if one of them is
    damaged, or is not what was saved for these ids and this fingerprint, or does not answer as it
    did; OSError if it cannot be opened.
    """

    def read() -> tuple[list[Layer], Tensor]:
        return _read(path, engine, ids, fingerprint)

    layers, then = engine.peers.agreed(read, Refused, OSError)
    difference = _difference(probe(engine, layers, ids, saved), then)

    def compared() -> None:
        if not difference <= TOLERANCE[engine.dtype]:
            raise Refused(f"the model's logits over it differ by {difference:.1%}")

    engine.peers.agreed(compared, Refused)
    return _cache(engine, layers, len(ids), saved)


def _read(
    path: Path, engine: Engine, ids: Sequence[int], fingerprint: str
) -> tuple[list[Layer], Tensor]:
    """The layers of a file, and the logits that were saved with them. Raises Refused, OSError."""
    mapped = Mapped(path)
    mapped.header.require(KIND, fingerprint)
    mapped.check()
    contents = Contents(mapped.tensors)
    if contents.take("ids", torch.int32, None).tolist() != list(ids):
        raise Refused("its token ids differ")
    then = contents.take("probe", torch.float32, engine.config.vocab_size)
    layers = _layers(mapped.header, contents, engine, len(ids))
    contents.end()
    _require_shape(layers, engine, len(ids))
    return layers, then


def probe(engine: Engine, layers: Sequence[Layer], ids: Sequence[int], saved: int = 0) -> Tensor:
    """Logits `[vocab]` (fp32) after the document and its last tokens once more.

    In a cache of its own, which shares entries with no other.
    """
    return engine.score(_cache(engine, layers, len(ids), saved), ids[-PROBE:])[-1].float().cpu()


@torch.inference_mode()
def _cache(engine: Engine, layers: Sequence[Layer], tokens: int, saved: int) -> KVCache:
    cache = engine.empty_cache()
    every: list[LayerCache | WindowLayer] = [*cache.layers, *cache.windows.values()]
    for layer, kept in zip(every, layers, strict=True):
        if isinstance(layer, LayerCache):
            layer.segments = [part.segment() for part in kept.parts]
        layer.tail.start = tokens - kept.keys.shape[1]
        layer.tail.append(kept.keys, kept.values)
    cache.position, cache.saved = tokens, saved
    return cache


def _layers(header: Header, contents: Contents, engine: Engine, tokens: int) -> list[Layer]:
    """The layers of a file, each of its tensors what it should be. Raises Refused."""
    config, found = engine.model.config, []
    if len(header.segments) != config.num_layers:
        raise Refused(f"it has {len(header.segments)} layers; the model has {config.num_layers}")
    shape = Shape(config.num_kv_heads, config.head_dim, engine.dtype)
    none = torch.empty(shape.heads, 0, shape.dim, dtype=engine.dtype)
    for number, segments in enumerate(header.segments):
        parts = []
        for which, (kind, span, home) in enumerate(segments):
            own = contents.part(f"{number}.{which}.").tensors
            require_segment(kind, own, span, shape, tokens)
            homes = {"pool": home}
            here = {
                name: placed(tensor, homes.get(name, HOMES[0]), engine.device)
                for name, tensor in own.items()
            }
            parts.append(Part(kind, span, here))
        tail = contents.part(f"{number}.tail.")
        ends = [none, none]
        if "k" in tail:
            ends = [tail.take(name, engine.dtype, shape.heads, None, shape.dim) for name in "kv"]
        tail.end()
        found.append(Layer(parts, *(entries.to(engine.device) for entries in ends)))
    return found


def _require_shape(layers: Sequence[Layer], engine: Engine, tokens: int) -> None:
    """Raise Refused unless these can be the layers of this model's cache of so many tokens."""
    config = engine.model.config
    full = len(config.full_layers)
    windows = [kind.window for kind in config.layers if kind.window]
    for layer, window in zip(layers[full:], windows, strict=True):
        shape = (config.num_kv_heads, min(tokens, window - 1), config.head_dim)
        if layer.parts or {layer.keys.shape, layer.values.shape} != {shape}:
            raise Refused(f"it lacks the window of {window:,} tokens")
    for layer in layers[:full]:
        spans = [part.span for part in layer.parts]
        ends = [0, *(end for _, end in spans)]
        shape = (config.num_kv_heads, tokens - ends[-1], config.head_dim)
        if spans != list(pairwise(ends)) or {layer.keys.shape, layer.values.shape} != {shape}:
            raise Refused(f"it does not cover {tokens:,} tokens")


def _difference(found: Tensor, saved: Tensor) -> float:
    """Relative RMS; infinite where shapes differ or a value is not finite."""
    if found.shape != saved.shape or not bool(found.isfinite().all()):
        return float("inf")
    scale = saved.square().mean().sqrt().clamp_min(1e-30)
    return float((found - saved).square().mean().sqrt() / scale)
