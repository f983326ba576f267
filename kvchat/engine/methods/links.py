"""Links between neighbouring entries with similar keys, for `kvmerger`.

A *link* joins an entry with the one before it in its head; a *run* is what links hold together.
"""

import torch
from torch import Tensor


def similarity(keys: Tensor) -> Tensor:
    """Cosine of each key with the one before it, `[H, T]` fp32; -1 for the first of a head."""
    delta = torch.full(keys.shape[:2], -1.0, device=keys.device)
    for head, entries in enumerate(keys):  # fp32 copies of one head at a time
        unit = torch.nn.functional.normalize(entries.float(), dim=-1)
        delta[head, 1:] = (unit[1:] * unit[:-1]).sum(-1)
    return delta


def free_links(protected: Tensor) -> Tensor:
    """Links between two entries of which neither is `protected [H, T]`."""
    free = ~protected
    free[:, 1:] &= ~protected[:, :-1]
    free[:, 0] = False
    return free


def links_above(delta: Tensor, free: Tensor, threshold: float, most: int) -> Tensor:
    """Free links whose `delta [H, T]` exceeds a threshold; runs have at most `most` entries (0:
    any).

    Longer runs are cut at their weakest links.
    """
    links = free & (delta > threshold)
    while bool((cut := _cuts(links, delta, most)).any()):
        links &= ~cut
    return links


def best_links(delta: Tensor, free: Tensor, count: int, most: int) -> Tensor:
    """The `count` strongest free links of all heads together, or all there are.

    One adaptive threshold per layer. Runs have at most `most` entries (0: any): longer ones are cut
    at their weakest links, and the next strongest links are taken instead. Ties: the lower head,
    then the earlier entry.
    """
    free = free.clone()
    while True:
        table = delta.masked_fill(~free, float("-inf")).flatten()
        chosen = torch.sort(table, descending=True, stable=True).indices
        links = torch.zeros_like(free).flatten()
        links[chosen[: min(count, int(free.sum()))]] = True
        links = links.view_as(free)
        cut = _cuts(links, delta, most)
        if not bool(cut.any()):
            return links
        free &= ~cut


def _cuts(links: Tensor, delta: Tensor, most: int) -> Tensor:
    """The weakest links of runs of more than `most` entries, as many as it takes at least."""
    cut = torch.zeros_like(links).flatten()
    if most == 0:
        return cut.view_as(links)
    run = run_of(links)
    length = torch.bincount(run)[run]
    at = (links.flatten() & (length > most)).nonzero().flatten()
    at = at[torch.sort(delta.flatten()[at], stable=True).indices]
    at = at[torch.sort(run[at], stable=True).indices]  # by run, weakest first
    _, sizes = torch.unique_consecutive(run[at], return_counts=True)
    rank = torch.arange(len(at), device=at.device)
    rank -= torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    cut[at[rank < (length[at] - 1) // most]] = True
    return cut.view_as(links)


def run_of(links: Tensor) -> Tensor:
    """The number of the run that each entry belongs to, `[H*T]` int64, head after head."""
    return (~links).flatten().cumsum(0) - 1
