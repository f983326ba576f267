"""What is gathered while tokens walk through one layer, for the methods that will compress it."""

from itertools import pairwise

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods.base import Moments
from kvchat.engine.methods.needs import Needs
from kvchat.engine.model.layers import Rotation

# The first tokens' queries are far from all others: moments leave them out, as Expected Attention
# does.
OUTLIERS = 4


class Observation:
    """Gathers, chunk by chunk, what `needs` names, of one layer.

    The observation window crosses chunk borders: what is kept are the last W queries, not the last
    chunk's. Column sums are final per chunk, for a chunk's log-sum-exp is. They are of the tail's
    entries, and of the entries of segments that begin at position `since` or later.
    """

    def __init__(self, needs: Needs, since: int | None = None):
        self.needs = needs
        self.since = since
        self.end = 0  # position after the newest query
        self.window: tuple[Tensor, Tensor] | None = None  # queries, and their log-sum-exps
        self.mass: Tensor | None = None  # of the tail, [H, entries so far]
        self.frozen_mass: Tensor | None = None  # of a flat segment, [R]
        # how many queries before rotation, their sum [H*G, D], that of their outer products
        # [H*G, D, D], both float64
        self.sums: tuple[int, Tensor, Tensor] | None = None

    @classmethod
    def of(cls, needs: Needs, tensors: dict[str, Tensor], device: torch.device) -> "Observation":
        """What an observation whose `tensors()` these are has gathered of a document."""
        found, there = cls(needs), {name: t.to(device) for name, t in tensors.items()}
        if "queries" in there:
            found.window = there["queries"], there["lse"].float()
        if "mass" in there:
            found.mass = there["mass"].float()
        if "count" in there:
            found.sums = int(there["count"]), there["sum"], there["square"]
        return found

    def tensors(self) -> dict[str, Tensor]:
        """What was gathered of a document, by name."""
        found: dict[str, Tensor] = {}
        if self.window is not None:
            found |= {"queries": self.window[0], "lse": self.window[1].double()}
        if self.mass is not None:
            found["mass"] = self.mass.double()
        if self.sums is not None:
            count, total, square = self.sums
            found |= {"count": torch.tensor(count), "sum": total, "square": square}
        return found

    def see(
        self, q: Tensor, lse: Tensor, layer: LayerCache, scale: float, cos: Tensor, sin: Tensor
    ) -> None:
        """Take in a chunk; see `Observer.see`."""
        if limit := self.needs.queries:
            before, mass = self.window or (q[:0], lse[:0])
            # slices are copied, so that the chunk's own tensors are freed
            queries = torch.cat([before, q[-limit:]])[-limit:].clone()
            self.window = queries, torch.cat([mass, lse[-limit:]])[-limit:].clone()
            self.end = layer.tail.start + layer.tail.length
        if self.needs.column_mass:
            cap = layer.backend.cap
            self.mass = self._tail_mass(q, lse, layer.tail.keys, scale, cap)
            if self.since is not None:
                for segment in layer.since(self.since):
                    assert isinstance(segment, FlatSegment)
                    self.frozen_mass = self._segment_mass(q, lse, segment, scale, cap)
        if self.needs.future:
            first = layer.tail.start + layer.tail.length - len(q)
            self._add_moments(q, first, cos, sin)

    def forget(self, position: int) -> None:
        """Drop the queries of tokens from `position` on; what they attended to stays counted."""
        if self.window is not None:
            kept = max(0, len(self.window[0]) - max(0, self.end - position))
            self.window = self.window[0][:kept], self.window[1][:kept]
        self.end = min(self.end, position)

    def _tail_mass(self, q: Tensor, lse: Tensor, keys: Tensor, scale: float, cap: float) -> Tensor:
        heads, entries, _ = keys.shape
        seen = torch.arange(entries - len(q), entries, device=q.device) + 1
        mass = ops.column_mass(q, keys, lse, seen, scale, cap=cap)
        mass = mass.view(heads, -1, entries).sum(dim=1)
        if self.mass is not None:  # entries that were truncated since count no more
            before = self.mass[:, : entries - len(q)]
            mass[:, : before.shape[1]] += before
        return mass

    def _segment_mass(
        self, q: Tensor, lse: Tensor, segment: FlatSegment, scale: float, cap: float
    ) -> Tensor:
        group = q.shape[1] // len(segment.lengths)
        parts = []
        for head, (a, b) in enumerate(pairwise(segment.ends)):
            own = slice(head * group, (head + 1) * group)
            seen = torch.full((len(q),), b - a, device=q.device)
            keys = segment.k[None, a:b]
            mass = ops.column_mass(q[:, own], keys, lse[:, own], seen, scale, cap=cap).sum(dim=0)
            if segment.bias is not None:  # it raises the logit of its entry
                mass *= segment.bias[a:b].exp()
            parts.append(mass)
        mass = torch.cat(parts)
        return mass if self.frozen_mass is None else mass + self.frozen_mass

    def _add_moments(self, q: Tensor, first: int, cos: Tensor, sin: Tensor) -> None:
        skip = min(len(q), max(0, OUTLIERS - first))
        plain = ops.rope(q.float(), cos, -sin)[skip:].transpose(0, 1)  # turned back, [H*G, T, D]
        count, total = len(q) - skip, plain.sum(1).double()
        square = (plain.transpose(1, 2) @ plain).double()
        if self.sums is not None:
            before = self.sums
            count, total, square = count + before[0], total + before[1], square + before[2]
        self.sums = count, total, square


def column_mass(parts: list[Observation], entries: int) -> Tensor | None:
    """Column sums `[H, entries]` of the first entries, over the queries of all parts."""
    masses = [part.mass[:, :entries] for part in parts if part.mass is not None]
    return torch.stack(masses).sum(dim=0) if masses else None


def moments(parts: list[Observation], coming: Rotation, future: int) -> Moments | None:
    """Moments of all parts' queries, turned by the mean of the first `future` of `coming`."""
    sums = [part.sums for part in parts if part.sums is not None]
    if not sums:
        return None
    count = max(1, sum(number for number, _, _ in sums))
    mean = torch.stack([total for _, total, _ in sums]).sum(0) / count
    square = torch.stack([products for _, _, products in sums]).sum(0) / count
    covariance = (square - mean[:, :, None] * mean[:, None]).float()  # [H*G, D, D]
    turns = (coming.cos, coming.sin)
    cos, sin = (part[:future].mean(dim=0, keepdim=True) for part in turns)

    def turn(entries: Tensor) -> Tensor:  # [..., D]
        flat = entries.reshape(1, -1, entries.shape[-1])
        return ops.rope(flat, cos, sin).view_as(entries)

    return Moments(turn(mean.float()), turn(turn(covariance).transpose(1, 2)))
