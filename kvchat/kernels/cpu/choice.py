"""Which coded entries one token reads, and a copy of them: PQCache, see `kernels.reference.pq_*`.

A head's entries have codes `[M, m]` of m parts. Where they are listed by cell (all entries of one
joint code), cells are ranked in place of entries: an *item* is one or the other.
"""

import numpy as np
from numba import prange

from kvchat.kernels.cpu.attention import NOTHING
from kvchat.kernels.cpu.numbers import F32, LINE, both, exp, fetch, jit, largest, ordered, unordered

SUM, MAX, LOGITS = 0, 1, 2  # `cache.AGGREGATES`
AHEAD = 8  # entries that are asked for before they are copied
NEVER = np.int32(-(2**31))  # of an item without entries


@jit()
def _products(q, centroids, scale, table):
    """`table [m, C] = scale * q_j . centroids[j, c]`: one query `q [D]` and `centroids [m, C, d]`."""
    parts, size, dim = centroids.shape
    for j in range(parts):
        for c in range(size):
            dot = F32(0)
            for i in range(dim):
                dot += q[j * dim + i] * centroids[j, c, i]
            table[j, c] = dot * scale


@jit()
def _by_cell(table, logits):
    """Logits of all cells `[C^m]`, the last part counting fastest."""
    parts, size = table.shape
    cells = 1
    logits[0] = F32(0)
    for j in range(parts):
        for cell in range(cells - 1, -1, -1):  # what is written has been read
            before = logits[cell]
            for c in range(size):
                logits[cell * size + c] = before + table[j, c]
        cells *= size


@jit()
def _by_entry(table, codes, logits):
    """Logits of all entries by their `codes [M, m]`."""
    for n in range(len(codes)):
        total = F32(0)
        for j in range(len(table)):
            total += table[j, codes[n, j]]
        logits[n] = total


@jit()
def _judge(logits, items, count, aggregate, first, worth):
    """What items are worth to one more query, by its `logits`; `count` entries each, or one."""
    if aggregate == LOGITS:
        for n in range(items):
            worth[n] = logits[n] if first else worth[n] + logits[n]
        return
    if count.size:
        for n in range(items):
            logits[n] = logits[n] if count[n] > F32(0) else NOTHING
    top, total = largest(logits, items), F32(0)
    for n in range(items):
        logits[n] = exp(logits[n] - top)
    if count.size:
        for n in range(items):
            total += logits[n] * count[n]
    else:
        for n in range(items):
            total += logits[n]
    share = F32(1) / total
    if first:
        for n in range(items):
            worth[n] = logits[n] * share
    elif aggregate == SUM:
        for n in range(items):
            worth[n] += logits[n] * share
    else:
        for n in range(items):
            worth[n] = max(worth[n], logits[n] * share)


@jit()
def _bound(keys, items, count, wanted):
    """The `wanted`-th largest of `keys`, of which item n has `count[n]`, or one."""
    found = np.int64(-(2**31))
    for bit in range(31, -1, -1):
        tried = found + (np.int64(1) << bit)
        least = np.int32(tried)
        if count.size:
            weight = F32(0)
            for n in range(items):
                weight += count[n] if keys[n] >= least else F32(0)
            above = np.int64(weight)
        else:
            number = np.int32(0)
            for n in range(items):
                number += np.int32(keys[n] >= least)
            above = np.int64(number)
        if above >= wanted:
            found = tried
    return np.int32(found)


@jit()
def _picked_cells(keys, items, bound, wanted, codes, size, offset, order, pending, chosen):
    """Entries in cells above the bound, and of those at it the first that are still `wanted`."""
    at, edges, edge = 0, 0, 0
    for cell in range(items):
        if keys[cell] > bound:
            for place in range(offset[cell], offset[cell + 1]):
                chosen[at] = order[place]
                at += 1
        elif keys[cell] == bound:
            edges, edge = edges + 1, cell
    listed = order.size
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
def _copy(pool, late_k, late_v, before, sinks, chosen, k, v):
    """The first `sinks` entries and the `chosen` ones behind them to `k, v [S + count, D]`.

    `pool [N, 2D]` has key and value side by side; entries from N on are those of `late_k, late_v`
    from `before` on.
    """
    entries, dim = len(pool), k.shape[1]
    for slot in range(sinks + chosen.size):
        soon = slot + AHEAD - sinks
        if 0 <= soon < chosen.size:
            for line in range(0, 2 * dim * k.itemsize, LINE):
                fetch(pool, chosen[soon] + sinks, line)
        entry = slot if slot < sinks else chosen[slot - sinks] + sinks
        if entry < entries:
            for i in range(dim):
                k[slot, i] = pool[entry, i]
            for i in range(dim):
                v[slot, i] = pool[entry, dim + i]
        else:
            for i in range(dim):
                k[slot, i] = late_k[before + entry - entries, i]
                v[slot, i] = late_v[before + entry - entries, i]


def _choose(
    q, centroids, codes, scale, aggregate, wanted, sinks, offset, order, pending, count, pool,
    late_k, late_v, before, table, logits, worth, keys, chosen, gained, k, v,
):  # fmt: skip
    """Copy what one token's queries `q [H*G, D]` read to `k, v [H * (sinks + wanted), D]`.

    `centroids [H, m, C, d]`, `codes [H, M, m]`, and for cells the list `offset [H, C^m + 1]`, `order
    [H, N]`, `pending [H, P]`, `count [H, C^m]`, else without values. `pool [H, N, 2D]` and `late_k,
    late_v [H, capacity, D]` are the entries, see `_copy`. Room: `table [H, m, C]`, `logits, worth,
    keys [H, items]`. Entry numbers go to `chosen [H, wanted]`, without the sinks; what they are
    worth together to `gained [H]`.
    """
    heads, _, size, _ = centroids.shape
    group, listed = len(q) // heads, count.size > 0
    items = count.shape[1] if listed else codes.shape[1]
    each = sinks + wanted
    for head in prange(heads):
        for g in range(group):
            _products(q[head * group + g], centroids[head], scale, table[head])
            if listed:
                _by_cell(table[head], logits[head])
            else:
                _by_entry(table[head], codes[head], logits[head])
            _judge(logits[head], items, count[head], aggregate, g == 0, worth[head])
        for n in range(items):
            keys[head, n] = ordered(worth[head, n])
        if listed:
            for n in range(items):
                keys[head, n] = keys[head, n] if count[head, n] > F32(0) else NEVER
        bound, own, total = NEVER, chosen[head], F32(0)
        bound = _bound(keys[head], items, count[head], wanted)
        if listed:
            _picked_cells(
                keys[head], items, bound, wanted, codes[head], size,
                offset[head], order[head], pending[head], own,
            )  # fmt: skip
        else:
            _picked(keys[head], items, bound, wanted, own)
        missing = F32(wanted)
        for n in range(items):
            many = count[head, n] if listed else F32(1)
            many = many if keys[head, n] > bound else F32(0)
            missing -= many
            total += worth[head, n] * many if many > F32(0) else F32(0)
        gained[head] = total + missing * unordered(bound)
        _copy(
            pool[head], late_k[head], late_v[head], before, sinks, own,
            k[head * each : (head + 1) * each], v[head * each : (head + 1) * each],
        )  # fmt: skip


choose, choose_parallel = both(_choose)
