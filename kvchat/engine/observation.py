"""What is gathered while tokens walk through one layer, for the methods that will compress it."""

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.methods.base import Moments, Needs
from kvchat.engine.model.layers import Rotation


class Observation:
    """Gathers, chunk by chunk, what `needs` names, of one layer.

    The observation window crosses chunk borders: what is kept are the last W queries, not the last
    chunk's. Column sums are final per chunk, for a chunk's log-sum-exp is.
    """

    def __init__(self, needs: Needs):
        self.needs = needs
        self.queries: list[Tensor] = []
        self.lses: list[Tensor] = []
        self.mass: Tensor | None = None  # [H, rows so far]
        # how many queries before rotation, their sum [H*G, D], that of their outer products
        # [H*G, D, D], both float64
        self.sums: tuple[int, Tensor, Tensor] | None = None

    def see(self, q: Tensor, lse: Tensor, keys: Tensor, scale: float, rotation: Rotation) -> None:
        """Take in a chunk: the queries `q [T, H*G, D]` of the newest T of `keys [H, n, D]`.

        `lse [T, H*G]` is over all that they attend to, `rotation` what they were rotated by.
        """
        if limit := self.needs.queries:
            # slices are copied, so that the chunk's own tensors are freed
            self.queries = [torch.cat([*self.queries, q[-limit:]])[-limit:].clone()]
            self.lses = [torch.cat([*self.lses, lse[-limit:]])[-limit:].clone()]
        if self.needs.column_mass:
            self._add_mass(q, lse, keys, scale)
        if self.needs.future:
            self._add_moments(q, rotation)

    def _add_mass(self, q: Tensor, lse: Tensor, keys: Tensor, scale: float) -> None:
        heads, rows, _ = keys.shape
        seen = torch.arange(rows - len(q), rows, device=q.device) + 1
        mass = ops.column_mass(q, keys, lse, seen, scale).view(heads, -1, rows).sum(dim=1)
        if self.mass is not None:
            mass[:, : self.mass.shape[1]] += self.mass
        self.mass = mass

    def _add_moments(self, q: Tensor, rotation: Rotation) -> None:
        cos, sin = rotation
        plain = ops.rope(q.float(), cos, -sin).transpose(0, 1)  # turned back, [H*G, T, D]
        count, total = len(q), plain.sum(1).double()
        square = (plain.transpose(1, 2) @ plain).double()
        if self.sums is not None:
            before = self.sums
            count, total, square = count + before[0], total + before[1], square + before[2]
        self.sums = count, total, square


def column_mass(parts: list[Observation], rows: int) -> Tensor | None:
    """Column sums `[H, rows]` of the first rows, over the queries of all parts."""
    masses = [part.mass[:, :rows] for part in parts if part.mass is not None]
    return torch.stack(masses).sum(dim=0) if masses else None


def moments(parts: list[Observation], coming: Rotation) -> Moments | None:
    """Moments of all parts' queries, turned by the mean of the `coming` rotations `[n, D/2]`."""
    sums = [part.sums for part in parts if part.sums is not None]
    if not sums:
        return None
    count = sum(number for number, _, _ in sums)
    mean = torch.stack([total for _, total, _ in sums]).sum(0) / count
    square = torch.stack([products for _, _, products in sums]).sum(0) / count
    covariance = (square - mean[:, :, None] * mean[:, None]).float()  # [H*G, D, D]
    cos, sin = (part.mean(dim=0, keepdim=True) for part in coming)

    def turn(rows: Tensor) -> Tensor:  # [..., D]
        flat = rows.reshape(1, -1, rows.shape[-1])
        return ops.rope(flat, cos, sin).view_as(rows)

    return Moments(turn(mean.float()), turn(turn(covariance).transpose(1, 2)))
