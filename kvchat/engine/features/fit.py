"""Fitting the maps of LESS: what attention loses with its entries, layer by layer.

A document's last tokens ask, and what stands before them is evicted in several ways and to several
sizes. The maps of a layer are those that bring its output nearest to that of exact attention, by
Adam on the squared error behind the output projection, as the paper trains them.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import cos, pi
from pathlib import Path
from shutil import rmtree
from typing import Any, ClassVar, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from kvchat.engine.budget import Budget, Geometry
from kvchat.engine.cache.low_rank import Answers, Asks, Features, State
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.engine import Engine
from kvchat.engine.events import Progress, Smaller
from kvchat.engine.features import NAMES, flat, of
from kvchat.engine.methods.base import Method, Prefilled
from kvchat.engine.methods.needs import Needs
from kvchat.engine.methods.options import EVERYTHING
from kvchat.engine.prefill.prefill import Compression
from kvchat.engine.sizes import RANK
from kvchat.errors import KvchatError

LATER = 512  # tokens of a document's end: they ask, and nothing of them is evicted
EACH = 8  # one of so many of them is looked at
SHARES = (0.05, 0.1, 0.25, 0.5)  # of the entries before them that stay
RECENT = 0.5  # of those so many are the newest, the rest are attended to most
HIDDEN = 64  # hidden features
STEPS = 600
RATE = 3e-3
BEGINNING = -3.0  # logarithm of the share of what is gone that a state has at first
FLOOR = 0.2  # of the mean error, beside an example's own: what its error is measured by


class Example(NamedTuple):
    """An eviction: entries `[H, P, D]`, which are `gone [H, P]`, queries `[W, H*G, D]`, and what
    these see of the others (`lse [W, H*G]`) and of all, `[W, H*G, D]`."""

    keys: Tensor
    values: Tensor
    gone: Tensor
    queries: Tensor
    kept: Tensor
    lse: Tensor
    whole: Tensor


@dataclass(frozen=True)
class Study(Method):
    """Keeps nothing, and notes of every layer what a fit needs."""

    seen: dict[str, Tensor] = field(default_factory=dict, compare=False)

    budget: ClassVar[Budget] = EVERYTHING

    @property
    def needs(self) -> Needs:
        return Needs(queries=LATER, column_mass=True)

    def entries(self, geometry: Geometry) -> list[int]:
        return [0] * geometry.layers

    def compress(self, prefilled: Prefilled) -> FlatSegment:
        """Note the layer."""
        assert prefilled.column_mass is not None
        noted = {
            "keys": prefilled.keys,
            "values": prefilled.values,
            "queries": prefilled.queries[EACH - 1 :: EACH],
            "seen": prefilled.seen[EACH - 1 :: EACH],
            "mass": prefilled.column_mass,
        }
        for name, tensor in noted.items():
            self.seen[f"{prefilled.layer}.{name}"] = tensor.detach().cpu().clone()
        return prefilled.keep(torch.zeros_like(prefilled.exists))


class Fit:
    """Maps in the making: documents are given to `read`, then every layer is fitted."""

    def __init__(self, engine: Engine, folder: Path):
        """`folder` holds what was done so far, so that another run goes on."""
        self.engine, self.folder = engine, folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def has(self, mark: str) -> bool:
        """Whether a document was read."""
        return (self.folder / f"{mark}.read").exists()

    def read(self, ids: Sequence[int], mark: str) -> Generator[Progress | Smaller, None, None]:
        """Take in a document as ids; one that is too short says nothing."""
        study = Study()
        if len(ids) >= 2 * LATER:
            yield from self.engine.prefill(ids, [Compression(study)])
        _write(self.folder / f"{mark}.read", study.seen)

    def layers(self, marks: Sequence[str], held_out: Sequence[str]) -> Iterator[float]:
        """Fit each layer to the documents with these marks. Yields how much of the squared error
        of its output is left, on held-out ones. Raises KvchatError("usage") if all are short."""
        for number in range(len(self.engine.config.full_layers)):
            path = self.folder / f"{number}.layer"
            with suppress(OSError, SafetensorError, KeyError):
                yield float(load_file(path)["left"])
                continue
            output = self.engine.model.full_blocks[number].output(torch.float32)
            learnt, judged = (
                [each for mark in some for each in self._examples(mark, number)]
                for some in (marks, held_out)
            )
            if not learnt:
                least = f"no text has {2 * LATER:,} tokens or more"
                raise KvchatError(
                    "usage", least, "longer texts", "kvchat calibrate MODEL --for less"
                )
            found = fitted(learnt, output.float().cpu(), STEPS)
            with torch.no_grad():
                left = error(found, judged or learnt, output.float().cpu())
            if not left < 1:  # maps that help nowhere else are none
                found, left = Features(*(_nothing(each) for each in found)), 1.0
            named = dict(zip(NAMES, map(Tensor.contiguous, flat(found)), strict=True))
            _write(path, named | {"left": torch.tensor(left)})
            yield left

    def found(self) -> list[Features]:
        """The maps of all layers."""
        numbers = range(len(self.engine.config.full_layers))
        every = [load_file(self.folder / f"{number}.layer") for number in numbers]
        return [of([each[name] for name in NAMES]) for each in every]

    def forget(self) -> None:
        """Take away what was kept on the way."""
        rmtree(self.folder, ignore_errors=True)

    def _examples(self, mark: str, layer: int) -> Iterator[Example]:
        with safe_open(self.folder / f"{mark}.read", "pt") as file:
            names = ("keys", "values", "queries", "seen", "mass")
            if f"{layer}.keys" not in file.keys():  # noqa: SIM118
                return
            given = [file.get_tensor(f"{layer}.{name}") for name in names]
        keys, values, queries, seen, mass = given
        yield from examples(keys.float(), values.float(), queries.float(), seen, mass)


def examples(
    keys: Tensor, values: Tensor, queries: Tensor, seen: Tensor, mass: Tensor
) -> Iterator[Example]:
    """Evictions from a layer, one for each of `SHARES`.

    `keys, values [H, T, D]`, `queries [W, H*G, D]` that see the first `seen [W]` entries, `mass
    [H, T]` the attention that entries get.
    """
    heads, tokens, dim = keys.shape
    before = tokens - LATER
    logits = _logits(queries, keys) * dim**-0.5  # [H, W, G, T]
    hidden = torch.arange(tokens) >= seen[:, None]
    logits = logits.masked_fill(hidden[None, :, None], -torch.inf)
    whole, _ = _attended(logits, values)
    for share in SHARES:
        newest = max(1, round(share * RECENT * before))
        heavy = max(1, round(share * before) - newest)
        gone = torch.ones(heads, before, dtype=torch.bool)
        gone[:, before - newest :] = False
        best = mass[:, : before - newest].topk(heavy, dim=1).indices
        gone.scatter_(1, best, value=False)
        left = logits.clone()
        left[..., :before].masked_fill_(gone[:, None, None], -torch.inf)
        kept, lse = _attended(left, values)
        yield Example(keys[:, :before], values[:, :before], gone, queries, kept, lse, whole)


def fitted(every: Sequence[Example], output: Tensor, steps: int, seed: int = 0) -> Features:
    """Maps of one layer; `output [H*G, D, hidden]` is its output projection."""
    with torch.enable_grad(), torch.inference_mode(False):
        generator = torch.Generator().manual_seed(seed)
        weights, scale = _beginning(every, generator)
        for each in weights:
            each.requires_grad_()
        with torch.no_grad():
            lost = [float(_loss(None, each, output)) for each in every]
        floor = FLOOR * sum(lost) / len(lost)
        optimizer = torch.optim.Adam(weights, lr=RATE)
        order: list[int] = []
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 + cos(pi * step / steps)) / 2
            if not order:
                order = torch.randperm(len(every), generator=generator).tolist()
            number = order.pop()
            loss = _loss(_features(weights, scale), every[number], output)
            loss = loss / (lost[number] + floor + 1e-30)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
        found = _features([each.detach() for each in weights], scale)
        return of([each.clone() for each in flat(found)])


def error(features: Features | None, every: Sequence[Example], output: Tensor) -> float:
    """The mean squared error of a layer's output; with maps as a share of that without any."""
    if features is None:
        found = [float(_loss(None, each, output)) for each in every]
        return max(sum(found) / len(found), 1e-30)
    with_state = sum(float(_loss(features, each, output)) for each in every) / len(every)
    return with_state / error(None, every, output)


def _loss(features: Features | None, example: Example, output: Tensor) -> Tensor:
    o = example.kept
    if features is not None:
        state = State.of(features, example.keys, example.values, example.gone)
        other, lse = state.attend(example.queries)
        share = torch.sigmoid(lse - example.lse)[..., None]
        o = o + share * (other - o)
    missed: Tensor = torch.einsum("whd,hdx->wx", o - example.whole, output)
    return missed.square().mean()


def _features(weights: Sequence[Tensor], scale: tuple[Tensor, Tensor]) -> Features:
    """Maps for plain inputs from those of inputs with mean square 1, whose last is the shift."""
    asks, outer, answers, key_outer, mix, shift = weights
    group = len(asks) // len(answers)
    return Features(
        Asks(asks / scale[0], outer, shift.repeat_interleave(group)),
        Answers(answers / scale[1], key_outer, mix),
    )


def _nothing(maps: Any) -> Any:
    """Maps of the same shapes whose state weighs nothing."""
    return type(maps)(*map(torch.zeros_like, maps))


def _beginning(
    every: Sequence[Example], generator: torch.Generator
) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """Random maps, whose state weighs a part of what is gone."""
    heads, _, dim = every[0].keys.shape
    query_heads = every[0].queries.shape[1]

    def random(*shape: int) -> Tensor:
        found: Tensor = torch.randn(shape, generator=generator) * shape[-2] ** -0.5
        return found

    def size(vectors: Tensor) -> Tensor:  # of [heads, n, D]
        return vectors.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp_min(1e-6)

    some = every[:: max(1, len(every) // 8)]
    scale = (
        size(torch.cat([each.queries.transpose(0, 1) for each in some], dim=1)),
        size(torch.cat([each.keys for each in some], dim=1)),
    )
    weights = [
        random(query_heads, dim, HIDDEN),
        2 * random(query_heads, HIDDEN, RANK),
        random(heads, dim, HIDDEN),
        2 * random(heads, HIDDEN, RANK),
        torch.eye(RANK).repeat(heads, 1, 1),
        torch.zeros(heads),
    ]
    features, missing = _features(weights, scale), []
    for each in some:
        logits = _logits(each.queries, each.keys) * dim**-0.5
        gone = logits.masked_fill(~each.gone[:, None, None], -torch.inf).logsumexp(dim=-1)
        state = State.of(features, each.keys, each.values, each.gone)
        _, lse = state.attend(each.queries)
        own = lse.unflatten(1, (heads, -1)).transpose(0, 1)  # [H, W, G]
        missing.append((gone - own).mean(dim=(1, 2)))
    weights[-1] = torch.stack(missing).mean(dim=0) + BEGINNING
    return weights, scale


def _logits(queries: Tensor, keys: Tensor) -> Tensor:
    """`[H, W, G, T]` of `queries [W, H*G, D]` and `keys [H, T, D]`."""
    grouped = queries.unflatten(1, (len(keys), -1))
    found: Tensor = torch.einsum("whgd,htd->hwgt", grouped, keys)
    return found


def _attended(logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """`o [W, H*G, D]` and `lse [W, H*G]` of `logits [H, W, G, T]`."""
    o = torch.einsum("hwgt,htd->whgd", logits.softmax(dim=-1), values)
    return o.flatten(1, 2), logits.logsumexp(dim=-1).transpose(0, 1).flatten(1)


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)
