"""Which entries one token reads, and a copy of them; see `engine/cache/lookup.py`.

A head's entries have codes `[M, m]` of m parts. Where they are listed by cell (all entries of one
joint code), cells are ranked in place of entries; see `worth.py`. Without codes their keys are.
"""

import numpy as np
from numba import prange

from kvchat.kernels.cpu.numbers import F32, LINE, POSITIVE, both, fetch, jit, ordered, unordered
from kvchat.kernels.cpu.worth import by_cell, by_entry, by_key, counted, judge, products_of, shut

AHEAD = 8  # entries that are asked for before they are copied
NEVER = np.int32(-(2**31))  # of an item without entries
COARSE = 20  # bits of a key that say little: an eighth of its size


@jit()
def _above(keys, items, count, least):
    """How many entries have a key of `least` or more."""
    if count.size:
        weight = F32(0)
        for n in range(items):
            weight += count[n] if keys[n] >= least else F32(0)
        return np.int64(weight)
    number = np.int32(0)
    for n in range(items):
        number += np.int32(keys[n] >= least)
    return np.int64(number)


@jit()
def _bound(keys, items, count, wanted, near):
    """The `wanted`-th largest of `keys`, of which item n has `count[n]`, or one.

    Bit by bit; by the lower ones only for items `near [items]` to it, which is room.
    """
    found, top = np.int64(NEVER), NEVER
    for n in range(items):
        top = max(top, keys[n])
    for bit in range(31, COARSE - 1, -1):
        tried = found + (np.int64(1) << bit)
        if tried <= top and _above(keys, items, count, np.int32(tried)) >= wanted:
            found = tried
    end = found + (np.int64(1) << COARSE)
    least, most = np.int32(found), np.int32(min(end, np.int64(POSITIVE)))
    beyond = 0 if end > POSITIVE else _above(keys, items, count, most)
    left = 0
    for n in range(items):  # without branches
        near[left] = n
        left += int(least <= keys[n] and (keys[n] < most or end > POSITIVE))
    for bit in range(COARSE - 1, -1, -1):
        tried, above = found + (np.int64(1) << bit), np.int64(beyond)
        for n in range(left):
            item = near[n]
            if keys[item] >= tried:
                above += np.int64(count[item]) if count.size else 1
        if above >= wanted:
            found = tried
    return np.int32(found)


@jit()
def _picked_cells(keys, items, bound, wanted, codes, size, offset, order, pending, cells, chosen):
    """Entries in cells above the bound, and of those at it the first that are still `wanted`.

    `cells [C^m]` is room.
    """
    found, edges, edge = 0, 0, 0
    for cell in range(items):  # without branches
        cells[found] = cell
        found += keys[cell] > bound
        here = keys[cell] == bound
        edges += here
        edge = cell if here else edge
    at, listed = 0, order.size
    for n in range(found):
        if n + AHEAD < found:
            fetch(order, offset[cells[n + AHEAD]], 0)
        for place in range(offset[cells[n]], offset[cells[n] + 1]):
            chosen[at] = order[place]
            at += 1
    for n in range(pending.size):
        if keys[pending[n]] > bound:
            chosen[at] = listed + n
            at += 1
    if edges == 1:
        for place in range(offset[edge], min(offset[edge + 1], offset[edge] + wanted - at)):
            chosen[at] = order[place]
            at += 1
    else:  # cells of equal worth
        n = 0
        while at < wanted and n < listed:
            cell = 0
            for j in range(codes.shape[1]):
                cell = cell * size + codes[n, j]
            if keys[cell] == bound:
                chosen[at] = n
                at += 1
            n += 1
    n = 0
    while at < wanted:
        if keys[pending[n]] == bound:
            chosen[at] = listed + n
            at += 1
        n += 1


@jit()
def _picked(keys, items, bound, wanted, chosen):
    """Entries above the bound, and of those at it the first that are still `wanted`; ascending."""
    above, at = 0, 0
    for n in range(items):
        above += keys[n] > bound
    edges = wanted - above
    for n in range(items):
        if keys[n] > bound:
            chosen[at] = n
            at += 1
        elif keys[n] == bound and edges > 0:
            chosen[at] = n
            at += 1
            edges -= 1


@jit()
def _gained(worth, keys, items, count, bound, wanted):
    """What the `wanted` chosen entries are worth together."""
    missing, total = F32(wanted), F32(0)
    for n in range(items):
        many = count[n] if count.size else F32(1)
        above = keys[n] > bound
        missing -= many if above else F32(0)
        total += worth[n] * many if above else F32(0)
    return total + missing * unordered(bound)


@jit()
def _copy(keys, values, apart, late_k, late_v, before, sinks, chosen, k, v):
    """The first `sinks` entries and the `chosen` ones behind them to `k, v [S + count, D]`.

    Of `keys [N, ≥D]` those are the first numbers, of `values [N, ≥D]` the ones from `apart` on;
    entries from N on are those of `late_k, late_v` from `before` on.
    """
    entries, dim = len(keys), k.shape[1]
    for slot in range(sinks + chosen.size):
        soon = slot + AHEAD - sinks
        if 0 <= soon < chosen.size:
            for line in range(0, dim * k.itemsize, LINE):
                fetch(keys, chosen[soon] + sinks, line)
                fetch(values, chosen[soon] + sinks, line + apart * k.itemsize)
        entry = slot if slot < sinks else chosen[slot - sinks] + sinks
        if entry < entries:
            for i in range(dim):
                k[slot, i] = keys[entry, i]
            for i in range(dim):
                v[slot, i] = values[entry, apart + i]
        else:
            for i in range(dim):
                k[slot, i] = late_k[before + entry - entries, i]
                v[slot, i] = late_v[before + entry - entries, i]


def _choose(
    q, centroids, codes, scale, aggregate, wanted, bounds, sinks, offset, order, pending,
    coarse, owner, coarse_bounds, own_keys, own_values, apart, late_k, late_v, before,
    table, logits, worth, count, sizes, keys, marks, chosen, found, gained, k, v,
):  # fmt: skip
    """Copy what one token's queries `q [H*G, D]` read to `k, v [H * (sinks + most), D]`.

    That are the `wanted` best entries of each head, or with `bounds [H]` as many as are worth that
    and have room. `centroids [H, m, C, d]`, `codes [H, M, m]`, for cells the list `offset [H, C^m +
    1]`, `order [H, N]` and `pending [H, P]`, else without values; without codes M is the number of
    entries to choose from, by their keys. With a level above `coarse [H, 1, K, D]`, `owner [H, C]`
    and `coarse_bounds [H]`. `own_keys, own_values [H, N, ≥D]` and `late_k, late_v [H, capacity, D]`
    are the entries, see `_copy`. Room of each of P workers: `table [P, m, C]`, `logits, worth,
    count, sizes [P, items]` and `keys, marks [P, items]` (int32). Entry numbers go to `chosen [H,
    most]`, without the sinks, how many to `found [H]`; what they are worth together to `gained
    [H]`, and the sum is returned.
    """
    heads, _, size, _ = centroids.shape
    group, listed, bounded = len(q) // heads, offset.size > 0, bounds.size > 0
    items = offset.shape[1] - 1 if listed else codes.shape[1]
    most, workers = chosen.shape[1], len(table)
    each = sinks + most
    for worker in prange(workers):
        products, row, own, key = table[worker], logits[worker], worth[worker], keys[worker]
        many = count[worker, : items if listed else 0]
        for head in range(worker, heads, workers):
            if listed:
                counted(offset[head], pending[head], many)
            if coarse.size:
                shut(
                    q, head, group, coarse[head], owner[head], coarse_bounds[head], scale,
                    aggregate, products, row, own, sizes[worker], many,
                )  # fmt: skip
            for g in range(group):
                if codes.shape[2] == 0:
                    by_key(
                        q[head * group + g], own_keys[head], sinks, late_k[head], before, scale,
                        items, row,
                    )  # fmt: skip
                else:
                    products_of(q[head * group + g], centroids[head], scale, products)
                    if listed:
                        by_cell(products, row)
                    else:
                        by_entry(products, codes[head], row)
                judge(row, items, many, aggregate, g == 0, own)
            for n in range(items):
                key[n] = ordered(own[n])
            for n in range(many.size):  # no cell without entries
                key[n] = key[n] if many[n] > F32(0) else NEVER
            number = np.int64(wanted)
            if bounded:
                bound = ordered(bounds[head])
                number = _above(key, items, many, bound)
            if not bounded or number > most:
                number = min(number, most)
                bound = _bound(key, items, many, number, marks[worker])
            if listed:
                _picked_cells(
                    key, items, bound, number, codes[head], size, offset[head], order[head],
                    pending[head], marks[worker], chosen[head],
                )  # fmt: skip
            else:
                _picked(key, items, bound, number, chosen[head])
            found[head] = number
            gained[head] = _gained(own, key, items, many, bound, number)
            first, end = head * each, (head + 1) * each
            _copy(
                own_keys[head], own_values[head], apart, late_k[head], late_v[head], before, sinks,
                chosen[head, :number], k[first:end], v[first:end],
            )  # fmt: skip
    total = F32(0)
    for head in range(heads):
        total += gained[head]
    return total


choose, choose_parallel = both(_choose)
