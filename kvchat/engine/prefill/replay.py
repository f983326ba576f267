"""Replays: the document is put to the model again, and its entries are scored by the attention that
they get meanwhile.

KVzip (arXiv 2505.23416): entries that are needed to reconstruct the text are needed for any
question. Here a replay walks the layers beside the document, so only one layer's keys are ever
alive. What repeats a part of the text sees, of the document, that part and the first `SINKS`
entries: so replays cost as many operations for each token however long the document is, and choose
no worse than those that see all of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.attention.entries import Backend, Entries
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.cache.tail import Tail
from kvchat.engine.cache.window import WindowLayer
from kvchat.engine.methods.needs import Kind, Needs, ReplayScore
from kvchat.engine.methods.options import REPEAT
from kvchat.engine.model.layers import Block, Rotation
from kvchat.kernels.reference import capped

SINKS = 4  # first entries that a replay may look at beside its own part
LOGITS = 2**22  # attention values alive at once


@dataclass(frozen=True)
class Replay:
    """Token lists that follow the document, each by itself, about its tokens `start` to `end`.

    `kind` is what a method's `needs` call it.
    """

    kind: Kind
    texts: tuple[Sequence[int], ...]
    start: int
    end: int

    @property
    def ids(self) -> list[int]:
        """All lists, one after the other."""
        return [i for text in self.texts for i in text]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each list."""
        return [len(text) for text in self.texts]


def bare_replays(ids: Sequence[int], kinds: frozenset[Kind]) -> list[Replay]:
    """The text itself for every kind, without a word around it."""
    return [
        Replay((what, chunk), (ids[a : a + chunk],), a, min(a + chunk, len(ids)))
        for what, chunk in sorted(kinds)
        for a in range(0, len(ids), chunk)
    ]


class Retelling:
    """What a layer's replays show: the scores of the document's entries that `needs` names.

    An entry's score is the most that any query of a replay about it gives it: its attention
    (`mass`), that times the norm of the projected value (`value`), and that over the norm of the
    attention block's input (`change`, KVzip+). The softmax is over the first `SINKS` entries, the
    part of the document that the replay is about, and what the query sees of its own list. Entries
    of a sliding layer have no scores: nothing is chosen of them.
    """

    def __init__(self, needs: Needs, layer: LayerCache | WindowLayer, backend: Backend):
        self.needs = needs
        self.layer = layer
        self.tail = layer.tail
        self.backend = backend
        self.tables: dict[ReplayScore, Tensor] = {}  # [H, T]
        self._output: Tensor | None = None

    def tell(
        self, block: Block, x: Tensor, rotation: Rotation, replay: Replay, step: int
    ) -> Tensor:
        """Run the hidden states `x [t, hidden]` of a replay through a layer, and score entries.

        `rotation` is that of their positions; `step` of them attend to the document at once.
        Nothing is left in the cache, and nothing is noted if memory runs out.
        """
        q, k, v = block.project(x, rotation)
        scale = q.shape[-1] ** -0.5
        if isinstance(self.layer, WindowLayer):
            return block.finish(x, self._in_window(self.layer, q, k, v, replay, scale))
        own = squares(self.backend, q, k, v, replay.lengths, scale)
        first = self._first(self.layer, replay.start)
        about = self.tail.some(replay.start, replay.end)
        told = []
        for a in range(0, len(x), step):
            some = slice(a, a + step)
            if replay.kind[0] == REPEAT:
                near = (about,) if first is None else (first, about)
                seen = [self.backend.attend(q[some], entries, scale) for entries in near]
            else:
                seen = [old.attend(q[some], scale, self.backend) for old in self.layer.segments]
                seen.append(self.backend.attend(q[some], self.tail.entries, scale))
            o, _ = ops.combine([*seen, (own[0][some], own[1][some])])
            told.append(block.finish(x[some], o))
        weighings = {how for *kind, how in self.needs.replay_scores if tuple(kind) == replay.kind}
        if weighings:
            sizes = block.input_layernorm(x).float().norm(dim=-1)
            if weighings != {"mass"} and self._output is None:
                self._output = block.output(x.dtype)  # all replays share it
            output = self._output if weighings != {"mass"} else None
            cap = self.backend.cap
            sinks = None
            if first is not None and self.layer.segments:
                sinks = [first.k[a : a + n] for a, n in first.spans]
            given = self.tail, q, own[1], replay, weighings, scale, sizes, output, cap, sinks
            found = scores(*given)
            for how, part in found.items():
                table = self._table(ReplayScore(*replay.kind, how))[:, replay.start : replay.end]
                torch.maximum(table, part, out=table)
        return torch.cat(told)

    def _in_window(
        self, layer: WindowLayer, q: Tensor, k: Tensor, v: Tensor, replay: Replay, scale: float
    ) -> Tensor:
        """What the lists of a replay attend to, each by itself behind the document."""
        tokens, parts, begin = self.tail.length, [], 0
        for length in replay.lengths:
            end = begin + length
            try:
                self.tail.append(k[:, begin:end], v[:, begin:end])
                parts.append(layer.attend(q[begin:end], scale)[0])
            finally:
                self.tail.truncate(tokens)
            begin = end
        return torch.cat(parts)

    def told(self) -> dict[ReplayScore, Tensor]:
        """The scores `[H, T]`, infinite for entries that no replay is about."""
        return {
            score: table.masked_fill(table < 0, float("inf"))
            for score, table in self.tables.items()
        }

    def _first(self, layer: LayerCache, start: int) -> Entries | None:
        """Each head's first entries: of the segment that the tail stands behind, or those before
        the tail's entry `start`."""
        if layer.segments:
            (first, *_) = layer.segments[0].parts or ()
            spans = tuple((a, min(SINKS, n)) for a, n in first.spans)
            return replace(first, length=first.length.clamp(max=SINKS), spans=spans)
        return self.tail.some(0, min(SINKS, start)) if start else None

    def _table(self, score: ReplayScore) -> Tensor:
        if score not in self.tables:
            heads, entries, _ = self.tail.keys.shape
            self.tables[score] = torch.full((heads, entries), -1.0, device=self.tail.k.device)
        return self.tables[score]


def scores(
    tail: Tail,
    q: Tensor,
    own: Tensor,
    replay: Replay,
    weighings: set[str],
    scale: float,
    sizes: Tensor,
    output: Tensor | None,
    cap: float = 0.0,
    sinks: Sequence[Tensor] | None = None,
) -> dict[str, Tensor]:
    """What the queries `q [t, H*G, D]` of a replay make of the entries that it is about.

    Returns `[H, end - start]` for each weighing. `own [t, H*G]` are the log-sum-exps of what every
    query sees of its own list, `sizes [t]` the norms of the attention block's inputs,
    `output [H*G, D, hidden]` the output projection, `sinks [n, D]` each head's first keys if the
    tail does not begin with them.
    """
    start, end = replay.start, replay.end
    heads, _, dim = tail.keys.shape
    grouped = q.view(len(q), heads, -1, dim).transpose(0, 1)  # [H, t, G, D]
    beside = own.view(len(q), heads, -1).transpose(0, 1)  # [H, t, G]
    norms = None if output is None else _norms(tail.values[:, start:end], output)  # [H, G, n]
    best = {how: torch.zeros(heads, end - start, device=q.device) for how in weighings}
    each = at_once(q, heads) if sinks is None else 1
    step = max(1, LOGITS // (each * grouped.shape[2] * (end - start + SINKS)))
    for begin in range(0, heads, each):
        some = slice(begin, begin + each)
        ahead: Tensor = (
            tail.keys[some, : min(SINKS, start)] if sinks is None else sinks[begin][None]
        )
        sub = torch.cat((ahead, tail.keys[some, start:end]), dim=1).float()  # [h, n, D]
        for a in range(0, len(q), step):
            part = grouped[some, a : a + step].float()  # [h, s, G, D]
            logits = capped(torch.einsum("hsgd,hnd->hsgn", part, sub) * scale, cap)
            most = logits.amax(-1, keepdim=True)
            powers = logits.sub_(most).exp_()  # in place, and once: this is most of the work
            alone = powers.sum(-1, keepdim=True).log() + most
            total = torch.logaddexp(alone, beside[some, a : a + step, :, None].float())
            seen = powers[..., ahead.shape[1] :].mul_((most - total).exp())  # [h, s, G, n]
            found = {"mass": seen.amax(1)} if norms is None or "mass" in best else {}
            if norms is not None:
                if "value" in best:
                    found["value"] = seen.amax(1) * norms[some]
                if "change" in best:
                    seen.div_(sizes[a : a + part.shape[1], None, None])
                    found["change"] = seen.amax(1) * norms[some]
            for how, by_query_head in found.items():
                here = best[how][some]
                torch.maximum(here, by_query_head.amax(1), out=here)
    return best


def at_once(q: Tensor, heads: int) -> int:
    """KV heads that are scored at once: on a CPU one, whose logits stay in the cache; a card starts
    a kernel for all of them as soon as for one."""
    return heads if q.is_cuda else 1


def squares(
    backend: Backend, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], scale: float
) -> tuple[Tensor, Tensor]:
    """Causal attention inside of each of several lists that stand one after the other.

    `q [t, H*G, D]`, `k, v [H, t, D]`. Returns `o [t, H*G, D]`, `lse [t, H*G]`. Lists of one length
    go together, as if each were a KV head of its own.
    """
    if len(lengths) == 1:
        return backend.causal(q, k, v, scale)
    o, lse = (
        q.new_empty(q.shape, dtype=torch.float32),
        q.new_empty(q.shape[:2], dtype=torch.float32),
    )
    starts = [0, *accumulate(lengths)][:-1]
    for length in sorted(set(lengths)):
        begin = [start for start, n in zip(starts, lengths, strict=True) if n == length]
        entries = torch.tensor(begin, device=q.device)[:, None] + torch.arange(
            length, device=q.device
        )
        together = q[entries].transpose(0, 1).flatten(1, 2)  # [T, B*H*G, D]
        keys, values = (x[:, entries].transpose(0, 1).flatten(0, 1) for x in (k, v))  # [B*H, T, D]
        part, part_lse = backend.causal(together, keys, values, scale)
        shape = (length, len(begin), q.shape[1])
        o[entries] = part.view(*shape, q.shape[2]).transpose(0, 1).float()
        lse[entries] = part_lse.view(shape).transpose(0, 1).float()
    return o, lse


def _norms(values: Tensor, output: Tensor) -> Tensor:
    """L2 norm of each value entry behind the projection of each query head, `[H, G, n]`."""
    heads, entries, dim = values.shape
    by_head = output.float().view(heads, -1, dim, output.shape[2])
    gram = by_head @ by_head.transpose(2, 3)  # [H, G, D, D]: |v O|^2 = v (O O') v'
    wide = values.float()
    square = torch.einsum("hnd,hgde,hne->hgn", wide, gram, wide)
    return square.clamp_min(0).sqrt().view(heads, -1, entries)
