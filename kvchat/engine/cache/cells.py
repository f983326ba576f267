"""The inverted list of a small code book: which entries share a joint code, and selection by it.

All entries of a cell score alike, so cells are ranked in place of entries.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvchat.kernels.reference import cell_worth

FIRST = 256  # cells that are ranked before all are: the best entries are in few
EMPTY = float("-inf")
PENDING = 1024  # entries that wait outside of the list for the next sorting


@dataclass(frozen=True)
class Cells:
    """Coded entries of each KV head by cell, where `cell = (c_0 * C + c_1) * C + ...`.

    `offset [H, C^m + 1]` and `order [H, N]` (int32): the entries `order[h, offset[h, c] : offset[h,
    c+1]]` of head h are in cell c, ascending. `pending [H, P]` (int32) are the cells of the entries
    from N on. `count [H, C^m]` (fp32) are all entries of each cell.
    """

    offset: Tensor
    order: Tensor
    pending: Tensor
    count: Tensor

    @classmethod
    def of(cls, codes: Tensor, centroids: int) -> "Cells":
        """The list of `codes [H, N, m]` with C `centroids` per sub-space."""
        cell = joint(codes, centroids)
        size = centroids ** codes.shape[2]
        count = torch.zeros(len(cell), size, dtype=torch.int64, device=cell.device)
        count.scatter_add_(1, cell, torch.ones_like(cell))  # bincount would wait for a card
        offset = torch.nn.functional.pad(count.cumsum(dim=1), (1, 0))
        order = torch.sort(cell, dim=1, stable=True).indices
        return cls(offset.int(), order.int(), cell[:, :0].int(), count.float())

    def extended(self, codes: Tensor, new: int, centroids: int) -> "Cells":
        """With the last `new` entries of `codes [H, N, m]`, which are all entries."""
        if self.pending.shape[1] + new > PENDING:
            return Cells.of(codes, centroids)
        cell = joint(codes[:, -new:], centroids)
        one = torch.ones(cell.shape, device=cell.device)
        count = self.count.scatter_add(1, cell, one)
        pending = torch.cat((self.pending, cell.int()), dim=1)
        return Cells(self.offset, self.order, pending, count)

    def worth(self, table: Tensor, aggregate: str) -> Tensor:
        """What an entry of each cell is worth, `[H, C^m]`; see its twin."""
        return cell_worth(table, self.count, aggregate)

    def select(self, worth: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """`ops.pq_select` over the entries: the `count` best of every head, `[H, count]` int32.

        Whole cells from the best one on; the last places go to the lowest entries of the cell, or
        of the cells of equal worth, at the boundary. Also what the chosen entries are worth, `[H]`.
        """
        heads, entries = self.order.shape
        present = worth.masked_fill(self.count == 0, EMPTY)
        value, cell = torch.topk(present, min(FIRST, present.shape[1]), dim=1)
        ranked = self.count.gather(1, cell).cumsum(dim=1)
        if bool((ranked[:, -1] < count).any()):  # the best cells are small ones
            value, cell = torch.sort(present, dim=1, descending=True)
            ranked = self.count.gather(1, cell).cumsum(dim=1)
        last = (ranked < count).sum(dim=1, keepdim=True)  # where the boundary lies
        bound = value.gather(1, last)  # [H, 1]
        sure, edge = worth > bound, (worth == bound) & (self.count > 0)
        inside = self.count * sure
        missing = count - inside.sum(dim=1)  # [H]
        gained = (inside * worth).sum(dim=1) + missing * bound[:, 0]
        total = entries + self.pending.shape[1]
        edges = torch.sort(self._members(edge, total)).values
        head = edges // total
        first = torch.searchsorted(head, torch.arange(heads, device=head.device))
        rank = torch.arange(len(edges), device=head.device) - first[head]
        chosen = torch.cat((self._members(sure, total), edges[rank < missing[head]]))
        chosen = torch.sort(chosen).values.view(heads, count)
        chosen -= torch.arange(heads, device=chosen.device)[:, None] * total
        return chosen, gained

    def above(self, worth: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
        """The entries in cells that are worth `bound [H]` or more, ascending: `[H, n]` int32.

        A head that has fewer than others has -1 at the end. Also what they are worth together,
        `[H]`.
        """
        heads, total = len(worth), self.order.shape[1] + self.pending.shape[1]
        sure = (worth >= bound[:, None]) & (self.count > 0)
        found = torch.sort(self._members(sure, total)).values
        head, every = found // total, torch.arange(heads, device=worth.device)
        first = torch.searchsorted(head, every)
        rank = torch.arange(len(found), device=worth.device) - first[head]
        most = int((self.count * sure).sum(dim=1).max())
        chosen = torch.full((heads, most), -1, dtype=torch.int32, device=worth.device)
        chosen[head, rank] = (found - head * total).int()
        return chosen, (self.count * sure * worth).sum(dim=1)

    def without(self, gone: Tensor) -> "Cells":
        """As if cells `gone [H, C^m]` (bool) had no entries, for `worth` and `above`."""
        return replace(self, count=self.count.masked_fill(gone, 0.0))

    def _members(self, cells: Tensor, total: int) -> Tensor:
        """Entries in `cells [H, C^m]` (bool) as `head * total + entry`, in no order."""
        entries = self.order.shape[1]
        head, at = cells.nonzero(as_tuple=True)
        begin, end = self.offset[head, at], self.offset[head, at + 1]
        size = end - begin
        before = size.cumsum(dim=0, dtype=torch.int32) - size
        # one entry of the list after the other: [R]
        start, base = (head * entries + begin - before), head * total
        start, base = (each.int().repeat_interleave(size) for each in (start, base))
        index = start + torch.arange(len(start), dtype=torch.int32, device=start.device)
        found = self.order.flatten().index_select(0, index) + base
        if total == entries:
            return found
        head, at = cells.gather(1, self.pending.long()).nonzero(as_tuple=True)
        return torch.cat((found, (head * total + entries + at).int()))


def joint(codes: Tensor, centroids: int) -> Tensor:
    """Cells `[H, N]` (int64) of `codes [H, N, m]`."""
    cell = codes[..., 0].long()
    for code in codes.unbind(dim=2)[1:]:
        cell = cell * centroids + code
    return cell
