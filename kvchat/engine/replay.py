"""Replays: the document is told to the model again, and what it looks at while repeating is scored.

KVzip (arXiv 2505.23416): rows that are needed to reconstruct the text are needed for any question.
Here a replay walks the layers beside the document, so only one layer's keys are ever alive.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.sizes import REPLAY

SINKS = 4  # first rows that a replay may look at beside its own chunk
LOGITS = 2**22  # attention values alive at once


@dataclass(frozen=True)
class Replay:
    """An instruction to repeat, and the document's tokens `start` to `end` that it repeats."""

    ids: Sequence[int]
    start: int
    end: int


def bare_replays(ids: Sequence[int]) -> list[Replay]:
    """The text itself, repeated without an instruction, `REPLAY` tokens at a time."""
    starts = range(0, len(ids), REPLAY)
    return [Replay(ids[a : a + REPLAY], a, min(a + REPLAY, len(ids))) for a in starts]


class ReplayScores:
    """Scores the rows that a replay repeats, in one layer, while the replay attends to it.

    The softmax is over the first `SINKS` rows, the replay's own chunk of the document and the
    replay itself; a row's score is the most that any query of the replay gives it. `sizes [t]` are
    the norms of the attention block's inputs, `output [H*G, D, hidden]` the output projection: with
    them also the scores of KVzip+, attention times the projected value's norm over the input's.
    """

    def __init__(self, replay: Replay, sizes: Tensor, output: Tensor | None):
        self.replay = replay
        self.sizes = sizes
        self.output = output
        self.mass: Tensor | None = None  # [H, end - start]
        self.change: Tensor | None = None  # of KVzip+

    def see(
        self, q: Tensor, lse: Tensor, layer: LayerCache, scale: float, cos: Tensor, sin: Tensor
    ) -> None:
        """Take in the whole replay at once; see `Observer.see`."""
        keys, values = layer.tail.keys, layer.tail.values
        heads, rows, _ = keys.shape
        start, end, document = self.replay.start, self.replay.end, rows - len(q)
        sinks = min(SINKS, start)
        columns = [*range(sinks), *range(start, end), *range(document, rows)]
        chosen = torch.tensor(columns, device=q.device)
        own = slice(sinks, sinks + end - start)
        grouped = q.view(len(q), heads, -1, q.shape[-1]).transpose(0, 1)  # [H, t, G, D]
        norms = None
        if self.output is not None:
            norms = _norms(values[:, start:end], self.output)  # [H, G, n]
        best = torch.zeros(2, heads, end - start, device=q.device)
        step = max(1, LOGITS // (grouped.shape[2] * len(columns)))
        for head in range(heads):
            sub = keys[head, chosen].float()
            for a in range(0, len(q), step):
                part = grouped[head, a : a + step].float()  # [s, G, D]
                logits = torch.einsum("sgd,nd->sgn", part, sub) * scale
                at = torch.arange(a, a + len(part), device=q.device)
                later = torch.arange(len(columns), device=q.device) - own.stop > at[:, None]
                mass = logits.masked_fill(later[:, None], float("-inf")).softmax(-1)[..., own]
                best[0, head] = torch.maximum(best[0, head], mass.amax(dim=(0, 1)))
                if norms is not None:
                    mass = mass * norms[head] / self.sizes[a : a + len(part), None, None]
                    best[1, head] = torch.maximum(best[1, head], mass.amax(dim=(0, 1)))
        self.mass = best[0]
        self.change = best[1] if norms is not None else None


def _norms(values: Tensor, output: Tensor) -> Tensor:
    """L2 norm of each value row behind the projection of each query head, `[H, G, n]`."""
    heads, rows, dim = values.shape
    by_head = output.float().view(heads, -1, dim, output.shape[2])
    gram = by_head @ by_head.transpose(2, 3)  # [H, G, D, D]: |v O|^2 = v (O O') v'
    wide = values.float()
    square = torch.einsum("hnd,hgde,hne->hgn", wide, gram, wide)
    return square.clamp_min(0).sqrt().view(heads, -1, rows)


def gathered(scores: Sequence[ReplayScores], heads: int, rows: int) -> tuple[Tensor, Tensor | None]:
    """Scores of KVzip and, where they were asked for, of KVzip+, of a whole layer, `[H, rows]`.

    Rows that no replay repeats are infinite.
    """
    tables: list[Tensor | None] = []
    for parts in ([part.mass for part in scores], [part.change for part in scores]):
        if not parts or parts[0] is None:
            tables.append(None)
            continue
        table = torch.full((heads, rows), float("inf"), device=parts[0].device)
        for part, found in zip(scores, parts, strict=True):
            assert found is not None
            table[:, part.replay.start : part.replay.end] = found
        tables.append(table)
    mass, change = tables
    assert mass is not None, "replays score before anyone asks"
    return mass, change


def replayed(scores: Sequence[ReplayScores], heads: int, rows: int) -> dict[str, Tensor]:
    """The same by name, as far as there is any."""
    if not scores:
        return {}
    mass, change = gathered(scores, heads, rows)
    return {"replay_mass": mass} | ({} if change is None else {"replay_change": change})
