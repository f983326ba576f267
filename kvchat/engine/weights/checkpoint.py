"""Checkpoints: their tensors checked, and streamed into a model one by one.

Strict: missing, unexpected or misshapen tensors are errors. Nothing is read but headers until
then.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from kvchat import ram
from kvchat.engine.gguf import is_gguf, tensors
from kvchat.engine.gguf.file import GGUF
from kvchat.engine.gguf.tensors import Packed
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.model.decoder import Decoder, empty_decoder
from kvchat.engine.model.shard import WHOLE, Shard
from kvchat.engine.peers import ALONE, Peers
from kvchat.engine.weights import lowbit, names, safetensors
from kvchat.engine.weights.bits import format_of, require_shapes, weights_bytes
from kvchat.engine.weights.linear import STORED, TABLES, Embedding, in_few_bits
from kvchat.engine.weights.names import Slot
from kvchat.engine.weights.pages import Pages, large_pages
from kvchat.engine.weights.safetensors import Stored
from kvchat.errors import KvchatError

NORM = "norm.weight"  # how the names of norms end
Places = list[tuple[Stored, list[Slot]]]


def find_files(path: Path) -> list[Path]:
    """All files with weights of a checkpoint. Raises KvchatError("model")."""
    return GGUF(path).paths if is_gguf(path) else safetensors.find_shards(path)


def load_weights(
    path: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    weights: str = "auto",
    peers: Peers = ALONE,
) -> Iterator[tuple[int, int] | Decoder]:
    """Build the model and stream its tensors in, one at a time, from a folder or a GGUF file.

    Yields `(bytes done, bytes in all)` of the checkpoint, first with nothing done but every name
    and shape checked from the headers, then the model. Tensors are converted to the wanted dtype,
    or stored in the few bits of `weights`, one by one; on a CPU they come into large pages, or stay
    mapped to the file where memory is short. A table of which only rows are read stays mapped.
    Blocks of GGUF become what `bits.format_of` says. A rank beside `peers` takes its rows of every
    matrix, and touches no others. Raises KvchatError("model") listing at most five names and the
    file, or the shapes that cannot be stored as `weights`.
    """
    model = _build(config, dtype, weights, peers)
    shard, pages = Shard(peers.rank, peers.count), _pages(model, device)
    with ExitStack() as opened:
        places = _checked(path, model if shard.count == 1 else empty_decoder(config), opened)
        total, done = sum(stored.size for stored, _ in places), 0
        yield done, total
        for stored, slots in places:
            tensor = stored.read()
            for slot in slots:
                _place(model, slot.name, _own(config, slot, tensor, shard), device, pages)
            stored.forget()  # what stays mapped comes again when it is used
            del tensor
            done += stored.size
            yield done, total
    yield _finished(model)


def norms(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    """The norms of a checkpoint by our names: a few kilobytes. Raises KvchatError("model")."""
    found: dict[str, Tensor] = {}
    with ExitStack() as opened:
        for _, stored, slots in _tensors(path, config, opened):
            for slot in slots:
                if slot.name.endswith(NORM):
                    tensor = _own(config, slot, stored.read())
                    assert isinstance(tensor, Tensor), slot.name
                    found[slot.name] = tensor.clone()
    return found


def random_weights(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
    weights: str = "auto",
) -> Decoder:
    """The model of a config with random weights (std 0.02), for `bench --dummy`."""
    model = _build(config, dtype, weights)
    pages, few = _pages(model, device), weights in STORED
    empty = partial(torch.empty, device=device) if pages is None or few else pages.empty
    generator = torch.Generator(device=device).manual_seed(seed)
    for name, slot in list(model.named_parameters()):
        tensor = empty(tuple(slot.shape), dtype=dtype)
        if name.endswith(NORM):
            tensor.fill_(1.0)
        else:
            tensor.normal_(0.0, 0.02, generator=generator)
        _place(model, name, tensor, device, pages if few else None)
    return _finished(model)


def _build(config: ModelConfig, dtype: torch.dtype, weights: str, peers: Peers = ALONE) -> Decoder:
    require_shapes(config, weights)
    model = empty_decoder(config, dtype, peers)
    require_shapes(model.config, weights)
    model.weights = weights
    return model


def _pages(model: Decoder, device: torch.device) -> Pages | None:
    """Large pages for the weights on a CPU; None where these would take most of what is free: what
    is mapped to a file can be larger than memory."""
    size = weights_bytes(model.config, model.dtype.itemsize, model.weights)
    return Pages() if device.type == "cpu" and large_pages() and 2 * size <= ram.free() else None


def _checked(path: Path, model: Decoder, opened: ExitStack) -> Places:
    """Every tensor of the checkpoint that the model has slots for, in the files' order."""
    config = model.config
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found: dict[str, str] = {}  # what is wrong with the shape of each slot, or nothing
    places: Places = []
    unexpected = []
    for name, stored, slots in _tensors(path, config, opened):
        for slot in slots:
            rows = stored.shape[:1] if slot.rows is None else (slot.rows[1] - slot.rows[0],)
            shape = (*rows, *stored.shape[1:])
            joined = slot.rows is not None and slots[-1].rows[1:] != stored.shape[:1]  # type: ignore[index]
            wrong = slot.name in wanted and (shape != wanted[slot.name] or joined)
            found[slot.name] = (
                f"{name} is {list(stored.shape)}, not {list(wanted[slot.name])} "
                f"({stored.file.name})"
                if wrong
                else ""
            )
        unexpected += [name for slot in slots if slot.name not in wanted]
        places.append((stored, slots))
    missing = [name for name in wanted if name not in found]
    misshapen = list(filter(None, found.values()))
    for what, bad in (("lacks", missing), ("has unknown", unexpected), ("misshapen:", misshapen)):
        if bad:
            more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
            raise KvchatError(
                "model",
                f"{path} {what} {len(bad)} tensor{'s' * (len(bad) > 1)}: "
                f"{', '.join(bad[:5])}{more}",
                tensors=bad[:5],
            )
    return places


def _tensors(
    path: Path, config: ModelConfig, opened: ExitStack
) -> Iterator[tuple[str, Stored, list[Slot]]]:
    """What a checkpoint calls each tensor, the tensor, and its slots."""
    if is_gguf(path):
        opened.callback(tensors.release)
        for name, info in tensors.tensors_of(GGUF(path)).items():
            read, forget = partial(tensors.read, info), partial(tensors.forget, info)
            one = Stored(info.shape, info.size, info.path, read, forget)
            yield info.name, one, names.apart(config, name)
        return
    for name, one in safetensors.stored(path, opened, lambda n: names.slots(config, n) is None):
        if (slots := names.slots(config, name)) is not None:
            yield name, one, slots


def _own(
    config: ModelConfig, slot: Slot, tensor: Tensor | Packed, shard: Shard = WHOLE
) -> Tensor | Packed:
    """What of a checkpoint's tensor belongs into a slot of this rank, in our order and meaning."""
    first, end = slot.rows or (0, len(tensor))
    a, b = shard.taken(slot.name, end - first)
    part = slice(first + a, first + b)
    if part != slice(0, len(tensor)):
        tensor = tensor.taken(part) if isinstance(tensor, Packed) else tensor[part]
    if (order := names.rows_of(config, slot.name, len(tensor))) is not None:
        rows = torch.tensor(order)
        tensor = tensor.taken(rows) if isinstance(tensor, Packed) else tensor[rows]
    if config.norm_plus_one and slot.name.endswith("norm.weight"):
        assert isinstance(tensor, Tensor), slot.name
        return tensor.float() + 1
    return tensor


def _finished(model: Decoder) -> Decoder:
    """The model once every tensor has its place."""
    lowbit.room.cache_clear()
    model.tie()
    if model.device.type == "cuda":  # on a CPU a step reads them one by one
        for block in model.blocks:
            block.join()
    return model.eval()


def _place(
    model: Decoder, name: str, tensor: Tensor | Packed, device: torch.device, pages: Pages | None
) -> None:
    """Give a tensor its place; a matrix in few bits takes the place of the module itself."""
    path, _, leaf = name.rpartition(".")
    module, dtype = model.get_submodule(path), model.dtype
    if model.config.wide_norms and name.endswith("norm.weight"):
        dtype = torch.float32
    if leaf == "weight" and len(tensor.shape) == 2:
        table = isinstance(module, Embedding) or module is model.lm_head
        block = tensor.block.name if isinstance(tensor, Packed) else ""
        stored = format_of(block, (tensor.shape[0], tensor.shape[1]), model.weights, table)
        if stored in STORED:
            stored = TABLES if table else stored
            small = in_few_bits(module, tensor.to(device), stored, dtype)
            if pages is not None:
                for part in small.parameters():
                    part.data = pages.empty(tuple(part.shape), part.dtype).copy_(part)
            model.set_submodule(path, small)
            return
    looked_up = isinstance(module, Embedding) and not model.config.tie_word_embeddings
    if pages is not None and not looked_up:  # a row per token can come from the file
        plain = lowbit.fill(pages.empty(tuple(tensor.shape), dtype), tensor)
    elif isinstance(tensor, Packed):
        plain = lowbit.fill(torch.empty(tensor.shape, dtype=dtype), tensor)
    else:
        plain = tensor
    setattr(module, leaf, nn.Parameter(plain.to(device, dtype), requires_grad=False))
