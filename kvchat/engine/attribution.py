"""What of a document an answer is from, told by attention once the answer is complete.

The question's tokens count as the answer's do: they find the place even where the answer is wrong.

Heads in the middle of a model look at the place in the document that the next token is copied from
(retrieval heads, arXiv 2404.15574). Which ones they are need not be known: attention counts where
it goes to the very token that was drawn, and attention to other tokens counts little.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvchat.engine.attention.entries import Entries
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.events import drain
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.model.decoder import Decoder
from kvchat.engine.peers import ALONE, Peers
from kvchat.kernels.reference import capped

LAYERS = 1 / 3, 3 / 4  # of a model's depth, between which layers are looked at
UNCOPIED = 0.1  # what attention to another token than the drawn one counts
TOKENS = 32  # of a turn that are looked at: those that are rarest in the document
# What they cost grows with the document: so that it stays a few per cent of an answer, fewer are
# looked at in a long one. Tokens of both multiplied, and tokens of a turn at least.
PAIRS, FEWEST = 24 * 4096, 8
REPLAYED = 1024  # of a turn that pass the layers again, at most
SLICE = 2**22  # logits alive at once
ROOM = 128  # tokens whose queries are kept without moving them


@dataclass
class Queries:
    """The queries `[H*G, D]` of single tokens in one layer by their positions, with the
    log-sum-exps `[H*G]` of all that they see. An `Observer`."""

    layer: LayerCache
    slots: dict[int, int] = field(default_factory=dict)  # of the store, by position
    store: tuple[Tensor, Tensor] | None = None  # with room for more
    free: list[int] = field(default_factory=list)
    used: int = 0

    def see(
        self, q: Tensor, lse: Tensor, layer: LayerCache, scale: float, cos: Tensor, sin: Tensor
    ) -> None:
        """Take in the newest tokens; see `Observer.see`."""
        self.take(q, lse, layer.tail.start + layer.tail.length - len(q))

    def take(self, q: Tensor, lse: Tensor, first: int) -> None:
        """Copy queries of tokens from position `first` on: a token is two writes."""
        if len(q) == 1 and self.free:
            begin = self.free.pop()
        else:
            begin, self.used = self.used, self.used + len(q)
        end = begin + len(q)
        if self.store is None or end > len(self.store[0]):
            old, room = self.store, max(ROOM, 2 * end)
            self.store = (
                q.new_empty(room, *q.shape[1:], dtype=torch.float32),
                lse.new_empty(room, *lse.shape[1:], dtype=torch.float32),
            )
            for new, before in zip(self.store, old or (), strict=False):
                new[:begin] = before[:begin]
        self.store[0][begin:end], self.store[1][begin:end] = q, lse
        self.slots.update(zip(range(first, first + len(q)), range(begin, end), strict=True))

    def drop(self, position: int) -> None:
        """Let go of a token, if it is there."""
        if (slot := self.slots.pop(position, None)) is not None:
            self.free.append(slot)

    def forget(self, position: int) -> None:
        """Drop the tokens from `position` on."""
        for at in [at for at in self.slots if at >= position]:
            self.drop(at)

    def rows(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Queries and log-sum-exps of the tokens at some positions, `[T, H*G, D]`, `[T, H*G]`."""
        assert self.store is not None
        at = torch.tensor([self.slots[at] for at in positions], device=self.store[0].device)
        return self.store[0][at], self.store[1][at]


def numbers(config: ModelConfig) -> list[int]:
    """The layers that are looked at, among those that attend to all tokens."""
    first, end = (int(share * config.num_layers) for share in LAYERS)
    found = [i for i, number in enumerate(config.full_layers) if first <= number < end]
    return found or [len(config.full_layers) // 2]


@contextmanager
def recorded(config: ModelConfig, cache: KVCache) -> Iterator[list[Queries]]:
    """Keep the queries of every token that passes meanwhile."""
    found = [Queries(cache.layers[number]) for number in numbers(config)]
    for each in found:
        each.layer.citing = each
    try:
        yield found
    finally:
        for each in found:
            each.layer.citing = None


@torch.inference_mode()
def replayed(model: Decoder, cache: KVCache, ids: Sequence[int]) -> list[Queries]:
    """The queries of the cache's newest tokens `ids`, at most `REPLAYED` of them.

    They pass the layers again as queries only: their keys are there, and nothing changes.
    """
    found = {id(cache.layers[n]): Queries(cache.layers[n]) for n in numbers(model.config)}
    ids = ids[-min(REPLAYED, *(layer.tail.length for layer in cache.walked)) :]
    first = cache.position - len(ids)
    places = torch.arange(cache.rotary - len(ids), cache.rotary, device=model.device)
    rotations = model.rotations(places)
    x, left = model.embed(torch.tensor(ids, device=model.device)), len(found)
    for block, layer in zip(model.blocks, cache.walked, strict=True):
        if not left:
            break
        q, _, _ = block.project(x, rotations[block.kind.rope])
        o, lse = layer.attend(q, q.shape[-1] ** -0.5)
        x = block.finish(x, o)
        if (wanted := found.get(id(layer))) is not None:
            wanted.take(q, lse, first)
            left -= 1
    return list(found.values())


@torch.inference_mode()
def attended(
    found: Sequence[Queries],
    following: Mapping[int, int],
    document: Sequence[int],
    peers: Peers = ALONE,
) -> Tensor:
    """How much a turn attends to each token of its document, `[N]` fp32; 0 for a token that was
    evicted everywhere.

    `following` are the tokens that follow those at some positions; `document` are the N ids that
    the cache begins with. The queries are those of one rank's heads; all ranks' count.
    """
    return drain(attending(found, following, document, peers))


@torch.inference_mode()
def attending(
    found: Sequence[Queries],
    following: Mapping[int, int],
    document: Sequence[int],
    peers: Peers = ALONE,
) -> Generator[None, None, Tensor]:
    """The same, the value of a generator that yields after every layer."""
    device = found[0].layer.tail.k.device
    seen = set[int].intersection(*(set(each.slots) for each in found))
    there = [at for at in following if at in seen]
    known = torch.tensor(document, device=device)
    after = torch.tensor([following[at] for at in there], device=device, dtype=torch.long)
    counts = torch.bincount(known, minlength=max(following.values(), default=0) + 1)
    times = counts[after].tolist()
    ranked = sorted(range(len(there)), key=lambda number: rank(times[number], document))
    most = min(TOKENS, max(FEWEST, PAIRS // max(len(document), 1)))
    chosen = sorted(ranked[:most])
    mass = Mass(after[chosen], known)
    for each in found if chosen else ():
        q, lse = each.rows([there[number] for number in chosen])
        mass.add(each.layer, q, lse, q.shape[-1] ** -0.5)
        yield
    mass.all, mass.copied = peers.added(mass.all), peers.added(mass.copied)
    mass.heads *= peers.count
    return mass.weight


def rank(times: int, document: Sequence[int]) -> int:
    """How little it tells that a token follows which the document has so many times; the least
    first: rare ones tell most, and what the document has not cannot be copied from it."""
    return times or len(document)


class Mass:
    """Attention of T tokens to a document of N, summed over heads and layers."""

    def __init__(self, after: Tensor, document: Tensor):
        """`after [T]` follow the tokens; `document [N]` are the document's ids."""
        self.after, self.document = after, document
        self.all = torch.zeros(len(after), len(document), device=document.device)
        self.copied = torch.zeros(len(document), device=document.device)
        self.heads = 0  # that have been taken in

    @property
    def weight(self) -> Tensor:
        """What each token of the document is worth, `[N]`: a share of a head's attention, summed
        over the answer's tokens.

        What every token attends to alike, as to the beginning of a text, is left out.
        """
        if not len(self.all):
            return self.copied
        most = self.all.amax(dim=0)
        beyond = most - self.all.mean(dim=0)
        return (self.copied + UNCOPIED * beyond * beyond / most.clamp(min=1e-9)) / self.heads

    def add(self, layer: LayerCache, q: Tensor, lse: Tensor, scale: float) -> None:
        """Take in a layer: queries `q [T, H*G, D]` with the `lse [T, H*G]` of all they see."""
        cap = layer.backend.cap
        self.heads += q.shape[1]
        for segment in layer.segments:
            for entries, position in segment.located():
                self._add(entries, position, q, lse, scale, cap)
        if layer.tail.start < len(self.document):
            for entries, position in layer.tail.located():
                self._add(entries, position, q, lse, scale, cap)

    def _add(
        self,
        entries: Entries,
        position: Tensor,
        q: Tensor,
        lse: Tensor,
        scale: float,
        cap: float,
    ) -> None:
        group = q.shape[1] // len(entries.spans)
        step = max(1, SLICE // (len(q) * group))
        for head, (start, length) in enumerate(entries.spans):
            own = slice(head * group, (head + 1) * group)
            for a in range(start, start + length, step):
                part = slice(a, min(a + step, start + length))
                asked = q[:, own].transpose(0, 1).float().flatten(0, 1) * scale  # [G*T, D]
                logits = capped(asked @ entries.k[part].float().T, cap)
                if entries.bias is not None:
                    logits += entries.bias[part]
                whole = lse[:, own].T.float().reshape(-1, 1)
                mass = logits.sub_(whole).exp_().view(group, len(q), -1).sum(dim=0)
                self._count(mass, position[part].long())

    def _count(self, mass: Tensor, at: Tensor) -> None:
        """Count the attention `mass [T, n]` to the tokens at positions `at [n]`, as far as they are
        the document's."""
        inside = at < len(self.document)  # what follows belongs to turns
        if bool((at.diff() == 1).all()):  # every entry is there: no position is looked up
            first, count = int(at[0]), int(inside.sum())
            part = slice(first, first + count)
            self.all[:, part] += mass[:, :count]
            same = self.document[part] == self.after[:, None]
            self.copied[part] += (mass[:, :count] * same).sum(dim=0)
            return
        mass, at = mass[:, inside], at[inside]
        self.all.index_add_(1, at, mass)
        same = self.document[at] == self.after[:, None]
        self.copied.index_add_(0, at, (mass * same).sum(dim=0))
