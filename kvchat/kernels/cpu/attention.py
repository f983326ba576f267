"""Attention of one token over ragged entries, set by set, summed by running log-sum-exps.

A set is `kernels.entries.Entries`: KV head h owns `length[h]` entries from `start[h]` on. Heads are
cut into `splits` pieces, so that several threads have work where there are few heads. Up to four
query heads of a group go through the entries together: each entry is then turned into numbers once.
"""

import numpy as np
from numba import prange

from kvchat.kernels.cpu.numbers import F32, LINE, both, exp, fetch, jit, largest, tanh, up

NOTHING, EMPTY = F32(-1e30), F32(-np.inf)
AHEAD = 32  # entries that are asked for before they are wanted
BLOCK = 1024  # entries whose logits are alive at once


def together(group: int) -> int:
    """How many query heads of a group go together; rooms have a multiple of it for each KV head."""
    return min(4, group) if group != 3 else 4


def padded(group: int) -> int:
    """Query heads per KV head that rooms need: those beyond the group are idle."""
    width = together(group)
    return -(-group // width) * width


@jit()
def dots_1(q, k, a, count, rows):
    """Products of one query with `count` entries from `a` on."""
    ahead = int(a + count < len(k))
    for n in range(count):
        dot = F32(0)
        for line in range(0, ahead * q.shape[1] * k.itemsize, LINE):
            fetch(k, a + n + AHEAD, line)
        for i in range(q.shape[1]):
            dot += q[0, i] * up(k[a + n, i])
        rows[0, n] = dot


@jit()
def dots_2(q, k, a, count, rows):
    ahead = int(a + count < len(k))
    for n in range(count):
        s, t = F32(0), F32(0)
        for line in range(0, ahead * q.shape[1] * k.itemsize, LINE):
            fetch(k, a + n + AHEAD, line)
        for i in range(q.shape[1]):
            x = up(k[a + n, i])
            s += q[0, i] * x
            t += q[1, i] * x
        rows[0, n], rows[1, n] = s, t


@jit()
def dots_4(q, k, a, count, rows):
    """Two entries at a time, so that the queries are loaded half as often."""
    ahead = int(a + count < len(k))
    for n in range(0, count - 1, 2):
        s, t, u, w = F32(0), F32(0), F32(0), F32(0)
        s2, t2, u2, w2 = F32(0), F32(0), F32(0), F32(0)
        for line in range(0, ahead * 2 * q.shape[1] * k.itemsize, LINE):
            fetch(k, a + n + AHEAD, line)
        for i in range(q.shape[1]):
            x, y = up(k[a + n, i]), up(k[a + n + 1, i])
            s += q[0, i] * x
            t += q[1, i] * x
            u += q[2, i] * x
            w += q[3, i] * x
            s2 += q[0, i] * y
            t2 += q[1, i] * y
            u2 += q[2, i] * y
            w2 += q[3, i] * y
        rows[0, n], rows[1, n], rows[2, n], rows[3, n] = s, t, u, w
        rows[0, n + 1], rows[1, n + 1], rows[2, n + 1], rows[3, n + 1] = s2, t2, u2, w2
    if count % 2:
        for g in range(4):
            dots_1(q[g : g + 1], k, a + count - 1, 1, rows[g : g + 1, count - 1 :])


@jit()
def sums_1(rows, v, a, count, o):
    """Four entries at a time, so that sums are loaded and stored a fourth as often."""
    ahead = int(a + count < len(v))
    four = count - count % 4
    for n in range(0, four, 4):
        s, t, u, w = rows[0, n], rows[0, n + 1], rows[0, n + 2], rows[0, n + 3]
        for line in range(0, ahead * 4 * o.shape[1] * v.itemsize, LINE):
            fetch(v, a + n + AHEAD, line)
        for i in range(o.shape[1]):
            x, y = up(v[a + n, i]), up(v[a + n + 1, i])
            o[0, i] += s * x + t * y + u * up(v[a + n + 2, i]) + w * up(v[a + n + 3, i])
    for n in range(four, count):
        s = rows[0, n]
        for i in range(o.shape[1]):
            o[0, i] += s * up(v[a + n, i])


@jit()
def sums_2(rows, v, a, count, o):
    ahead = int(a + count < len(v))
    for n in range(count):
        s, t = rows[0, n], rows[1, n]
        for line in range(0, ahead * o.shape[1] * v.itemsize, LINE):
            fetch(v, a + n + AHEAD, line)
        for i in range(o.shape[1]):
            x = up(v[a + n, i])
            o[0, i] += s * x
            o[1, i] += t * x


@jit()
def sums_4(rows, v, a, count, o):
    ahead = int(a + count < len(v))
    four = count - count % 4
    for n in range(0, four, 4):
        s0, s1, s2, s3 = rows[0, n], rows[0, n + 1], rows[0, n + 2], rows[0, n + 3]
        t0, t1, t2, t3 = rows[1, n], rows[1, n + 1], rows[1, n + 2], rows[1, n + 3]
        u0, u1, u2, u3 = rows[2, n], rows[2, n + 1], rows[2, n + 2], rows[2, n + 3]
        w0, w1, w2, w3 = rows[3, n], rows[3, n + 1], rows[3, n + 2], rows[3, n + 3]
        for line in range(0, ahead * 4 * o.shape[1] * v.itemsize, LINE):
            fetch(v, a + n + AHEAD, line)
        for i in range(o.shape[1]):
            x0, x1 = up(v[a + n, i]), up(v[a + n + 1, i])
            x2, x3 = up(v[a + n + 2, i]), up(v[a + n + 3, i])
            o[0, i] += s0 * x0 + s1 * x1 + s2 * x2 + s3 * x3
            o[1, i] += t0 * x0 + t1 * x1 + t2 * x2 + t3 * x3
            o[2, i] += u0 * x0 + u1 * x1 + u2 * x2 + u3 * x3
            o[3, i] += w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
    for g in range(4):
        sums_1(rows[g : g + 1, four:], v, a + four, count - four, o[g : g + 1])


@jit()
def weigh(row, count, scale, cap, bias, a, top, total, o):
    """Logits of `count` entries to weights, in place; earlier sums shrink to the new top."""
    for n in range(count):
        row[n] *= scale
    if cap > F32(0):
        for n in range(count):
            row[n] = cap * tanh(row[n] / cap)
    if bias.size:
        for n in range(count):
            row[n] += bias[a + n]
    highest = max(top, largest(row, count))
    shrink = exp(top - highest)
    weights = F32(0)
    for n in range(count):
        row[n] = exp(row[n] - highest)
    for n in range(count):
        weights += row[n]
    if shrink != F32(1):
        for i in range(o.size):
            o[i] *= shrink
    return highest, total * shrink + weights


@jit()
def finish(o, top, total, splits, out, lse):
    """Join the pieces of every head; see `_attend`."""
    tasks, _, dim = o.shape
    heads = tasks // splits
    group = len(out) // heads
    for head in range(heads):
        for g in range(group):
            highest = NOTHING
            for piece in range(head * splits, (head + 1) * splits):
                highest = max(highest, top[piece, g])
            row, weights = head * group + g, F32(0)
            for i in range(dim):
                out[row, i] = F32(0)
            for piece in range(head * splits, (head + 1) * splits):
                share = exp(top[piece, g] - highest)
                weights += total[piece, g] * share
                for i in range(dim):
                    out[row, i] += o[piece, g, i] * share
            if weights == F32(0):
                lse[row] = EMPTY
                continue
            lse[row] = highest + np.log(weights)
            for i in range(dim):
                out[row, i] /= weights


@jit()
def begin(q, head, group, fresh, asked, o, top, total):
    """Copy the queries of a head, `asked [P, D]`, idle ones zero; `fresh`: it has seen nothing."""
    for g in range(len(asked)):
        for i in range(q.shape[1]):
            asked[g, i] = q[head * group + g, i] if g < group else F32(0)
        if fresh:
            top[g], total[g] = NOTHING, F32(0)
            for i in range(q.shape[1]):
                o[g, i] = F32(0)


def _attend(
    q, k, v, start, length, bias, scale, cap, width, splits, fresh, last,
    o, top, total, queries, logits, out, lse,
):  # fmt: skip
    """Add one set to what `q [H*G, D]` has seen of earlier ones; `fresh`: there were none.

    `o [H*splits, P, D]` are sums of values, weighted by `exp(logit - top)`; `top, total
    [H*splits, P]` the largest logit and the sum of weights; `queries [H*splits, P, D]` and `logits
    [H*splits, P, BLOCK]` are room; P is `padded(G)`, of which `width` go together. Of the `last`
    set all of it becomes `out [H*G, D]` with the log-sum-exp `lse [H*G]`: 0 and -inf where nothing
    was seen.
    """
    heads = start.size
    group, wide = q.shape[0] // heads, o.shape[1]
    for task in prange(heads * splits):
        head, piece = task // splits, task % splits
        each = (length[head] + splits - 1) // splits
        first = start[head] + min(piece * each, length[head])
        end = start[head] + min((piece + 1) * each, length[head])
        asked = queries[task]
        begin(q, head, group, fresh, asked, o[task], top[task], total[task])
        for a in range(first, end, BLOCK):
            count = min(BLOCK, end - a)
            for g in range(0, wide, width):
                some, sums = asked[g : g + width], o[task, g : g + width]
                rows = logits[task, g : g + width]
                if width == 1:
                    dots_1(some, k, a, count, rows)
                elif width == 2:
                    dots_2(some, k, a, count, rows)
                else:
                    dots_4(some, k, a, count, rows)
                for h in range(min(width, group - g)):
                    top[task, g + h], total[task, g + h] = weigh(
                        rows[h], count, scale, cap, bias, a,
                        top[task, g + h], total[task, g + h], sums[h],
                    )  # fmt: skip
                if width == 1:
                    sums_1(rows, v, a, count, sums)
                elif width == 2:
                    sums_2(rows, v, a, count, sums)
                else:
                    sums_4(rows, v, a, count, sums)
    if last:
        finish(o, top, total, splits, out, lse)


attend, attend_parallel = both(_attend)


@jit()
def include(o, top, total, splits, last, other, other_lse, out, lse):
    """Add what was attended to elsewhere: `other [H*G, D]` with its log-sum-exp `[H*G]`."""
    tasks, _, dim = o.shape
    group = len(out) // (tasks // splits)
    for task in range(0, tasks, splits):
        for g in range(group):
            row = task // splits * group + g
            theirs = other_lse[row]
            if not theirs > NOTHING:
                continue
            highest = max(top[task, g], theirs)
            shrink, share = exp(top[task, g] - highest), exp(theirs - highest)
            top[task, g] = highest
            total[task, g] = total[task, g] * shrink + share
            for i in range(dim):
                o[task, g, i] = o[task, g, i] * shrink + other[row, i] * share
    if last:
        finish(o, top, total, splits, out, lse)
