"""Fitting a gate: ridge regression over documents that are read with kvzip's replays."""

from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvchat.engine.engine import Engine
from kvchat.engine.events import Progress, Smaller
from kvchat.engine.gates import Gate
from kvchat.engine.gates.listener import LEAST, Listener
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.kvzip import KVzip
from kvchat.engine.prefill.prefill import Compression
from kvchat.engine.prefill.replay_texts import replays_of
from kvchat.engine.text.chat_template import Dialogue

RIDGE = 0.03  # of the mean square of an input: what is added to each of them
END = 128  # entries of a document's end that have an offset by their place


@dataclass
class Sums:
    """What a layer's regression needs of the entries so far, in float64.

    `square [I, I]` and `product [I, H]` of the inputs with a constant, `total [H]` and `squares
    [H]` of the targets, over `count` entries. Of the last `END` entries of so many `documents` the
    inputs `end_x [END, I]` and targets `end_y [END, H]` are added up by their place.
    """

    square: Tensor
    product: Tensor
    total: Tensor
    squares: Tensor
    end_x: Tensor
    end_y: Tensor
    count: int = 0
    documents: int = 0

    @classmethod
    def empty(cls, inputs: int, heads: int) -> "Sums":
        """Of no entries."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        return cls(
            zeros(inputs, inputs),
            zeros(inputs, heads),
            zeros(heads),
            zeros(heads),
            zeros(END, inputs),
            zeros(END, heads),
        )

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in inputs `x [n, I]` of a document and their targets `y [n, H]`."""
        x, y = x.float(), y.float()
        self.square += x.T @ x  # of one document at a time: float32 suffices, and takes a quarter
        self.product += x.T @ y
        self.total += y.double().sum(0)
        self.squares += (y.double() ** 2).sum(0)
        self.count += len(x)
        if len(x) >= 2 * END:
            self.end_x += x[-END:].double()
            self.end_y += y[-END:].double()
            self.documents += 1

    def solve(self) -> Tensor:
        """The map `[H, I]`."""
        inner = self.square[:-1, :-1].diagonal().mean()
        ridge = torch.full((len(self.square),), RIDGE * float(inner), dtype=torch.float64)
        ridge[-1] = 0.0  # the constant is free
        solved: Tensor = torch.linalg.solve(self.square + ridge.diag(), self.product)
        return solved.T

    def end(self, weight: Tensor) -> Tensor:
        """What is to be added for the last entries by their place, `[H, END]`: how much more they
        are worth than a map `[H, I]` tells, beyond what it misses elsewhere.

        Means over more places the farther they are from the end; 0 without a document.
        """
        weight, count = weight.double(), self.documents
        if not count:
            return torch.zeros(len(weight), END, dtype=torch.float64)
        missed = self.end_y - self.end_x @ weight.T  # [END, H], of all documents
        # the last column of inputs is 1, so the last row of products is their sum
        all_missed = self.total - self.square[-1] @ weight.T
        elsewhere = (all_missed - missed.sum(0)) / (self.count - END * count)
        apart = missed / count - elsewhere
        reach = [max(1, (END - place) // 8) for place in range(END)]
        return torch.stack(
            [apart[max(0, at - r) : at + r + 1].mean(0) for at, r in enumerate(reach)], dim=1
        )

    def explained(self, weight: Tensor) -> float:
        """R² of a map `[H, I]` within heads, over the entries of these sums."""
        weight = weight.double()
        crossed = (weight.T * self.product).sum(0)
        own = ((self.square @ weight.T) * weight.T).sum(0)
        wrong = self.squares - 2 * crossed + own
        spread = self.squares - self.total**2 / self.count
        return float(1 - wrong.sum() / spread.sum())


@dataclass(frozen=True)
class Lesson(Listener):
    """Gives inputs and scores of every layer to the sums."""

    sums: Any = None
    inputs: Any = None

    def hear(self, prefilled: Prefilled, shown: Tensor) -> None:
        """Add the entries that have a score, but for the last one."""
        told = shown.isfinite().all(dim=0)
        told[-1] = False
        x = self.inputs.pop(prefilled.layer)[told]
        x = torch.cat([x.float(), torch.ones(len(x), 1, device=x.device)], dim=1)
        target = shown[:, told].clamp_min(LEAST).log().T
        self.sums[prefilled.layer].add(x.cpu(), target.cpu())


class Inputs(dict[int, Tensor]):
    """Keeps the inputs of layers; a gate that foretells nothing."""

    def scores(self, layer: int, x: Tensor, after: int) -> Tensor:
        """See `Scorer.scores`."""
        before = self.get(layer)
        self[layer] = x.clone() if before is None else torch.cat([before, x])
        return x.new_zeros(1, len(x))


class Fit:
    """A gate in the making: documents are given to `learn`, held-out ones to `check`."""

    def __init__(self, engine: Engine, dialogue: Dialogue, method: KVzip):
        config = engine.config
        self.engine, self.dialogue, self.method = engine, dialogue, method
        shape = config.hidden_size + 1, config.num_kv_heads
        layers = len(config.full_layers)
        self.sums = [Sums.empty(*shape) for _ in range(layers)]
        self.held_out = [Sums.empty(*shape) for _ in range(layers)]
        self.done: set[str] = set()

    def read(
        self, ids: Sequence[int], held_out: bool = False
    ) -> Generator[Progress | Smaller, None, None]:
        """Take in a document as ids: one that the gate is fitted to, or is judged by."""
        inputs, sums = Inputs(), self.held_out if held_out else self.sums
        known = {each.name: getattr(self.method, each.name) for each in fields(KVzip)}
        lesson = Lesson(**known, sums=sums, inputs=inputs)
        replays = replays_of(self.dialogue, ids, lesson.needs.kinds)
        yield from self.engine.prefill(ids, [Compression(lesson)], (), replays, gate=inputs)

    def resume(self, path: Path) -> set[str]:
        """Go on with what `note` has left; the marks of the documents that are in it."""
        with suppress(OSError, RuntimeError, KeyError, ValueError):
            left = torch.load(path, weights_only=True)
            self.sums = [Sums(**each) for each in left["sums"]]
            self.held_out = [Sums(**each) for each in left["held_out"]]
            self.done = set(left["done"])
        return self.done

    def note(self, mark: str, path: Path) -> None:
        """Keep what was taken in so far, the document `mark` last, so that another run goes on."""
        self.done.add(mark)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = {name: list(map(vars, getattr(self, name))) for name in ("sums", "held_out")}
        torch.save(state | {"done": sorted(self.done)}, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def gate(self, **about: Any) -> Gate:
        """The gate as fitted so far."""
        maps = [each.solve() for each in self.sums]
        if all(each.count for each in self.held_out):
            pairs = zip(self.held_out, maps, strict=True)
            about["r2"] = " ".join(f"{sums.explained(weight):.3f}" for sums, weight in pairs)
        about["entries"] = self.sums[0].count
        ends = [sums.end(weight) for sums, weight in zip(self.sums, maps, strict=True)]
        return Gate(torch.stack(maps).float(), torch.stack(ends).float(), about)
