"""What entries are worth to a token's queries: by codes, by clusters or by their keys.

See `kernels.reference.pq_*`. An *item* is an entry, or a cell: all entries of one joint code.
"""

from kvchat.kernels.cpu.attention import NOTHING
from kvchat.kernels.cpu.numbers import F32, exp, jit, largest, up

SUM, MAX, LOGITS = 0, 1, 2  # `cache.AGGREGATES`


@jit()
def products_of(q, centroids, scale, table):
    """`table [m, C]`, the products of one query `q [D]` and `centroids [m, C, d]`, part by part."""
    parts, size, dim = centroids.shape
    for j in range(parts):
        for c in range(size):
            dot = F32(0)
            for i in range(dim):
                dot += q[j * dim + i] * centroids[j, c, i]
            table[j, c] = scale * dot


@jit()
def counted(offset, pending, count):
    """Entries of each cell, `count [C^m]`: those of the list and those that wait."""
    for cell in range(offset.size - 1):
        count[cell] = F32(offset[cell + 1] - offset[cell])
    for n in range(pending.size):
        count[pending[n]] += F32(1)


@jit()
def by_cell(table, logits):
    """Logits of all cells `[C^m]`, the last part counting fastest."""
    parts, size = table.shape
    cells = 1
    logits[0] = F32(0)
    for j in range(parts):
        part = table[j]
        for cell in range(cells - 1, -1, -1):  # what is written has been read
            before, row = logits[cell], logits[cell * size : (cell + 1) * size]
            for c in range(size):
                row[c] = before + part[c]
        cells *= size


@jit()
def by_entry(table, codes, logits):
    """Logits of all entries by their `codes [M, m]`."""
    for n in range(len(codes)):
        total = F32(0)
        for j in range(len(table)):
            total += table[j, codes[n, j]]
        logits[n] = total


@jit()
def by_key(q, keys, first, late, before, scale, items, logits):
    """Logits of `items` entries by their keys: those of `keys [N, D]` from the `first` on, then
    those of `late [capacity, D]` from `before` on.
    """
    here = min(items, len(keys) - first)
    for n in range(here):
        dot = F32(0)
        for i in range(q.size):
            dot += q[i] * up(keys[first + n, i])
        logits[n] = scale * dot
    for n in range(here, items):
        dot = F32(0)
        for i in range(q.size):
            dot += q[i] * up(late[before + n - here, i])
        logits[n] = scale * dot


@jit()
def judge(logits, items, count, aggregate, first, worth):
    """What items are worth to one more query, by its `logits`; `count` entries each, or one."""
    if aggregate == LOGITS:
        for n in range(items):
            worth[n] = logits[n] if first else worth[n] + logits[n]
        return
    for n in range(count.size):
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
def shut(
    q, head, group, centroids, owner, bound, scale, aggregate, table, logits, worth, sizes, count
):
    """Take the entries from clusters `count [C]` whose cluster on the level above, `owner [C]`, is
    worth less than `bound` to the queries of a head; `centroids [1, K, D]`.

    `table [1, C]`, `logits, worth, sizes [C]` are room.
    """
    above = centroids.shape[1]
    for k in range(above):
        sizes[k] = F32(0)
    for n in range(count.size):
        sizes[owner[n]] += count[n]
    for g in range(group):
        products_of(q[head * group + g], centroids, scale, table)
        for k in range(above):
            logits[k] = table[0, k]
        judge(logits, above, sizes[:above], aggregate, g == 0, worth)
    for n in range(count.size):
        if worth[owner[n]] < bound:
            count[n] = F32(0)
