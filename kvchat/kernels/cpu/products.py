"""Products of a matrix and a few vectors: the linear maps of one token of each asker.

A row of the matrix is read once for all of them. Outputs begin at number `at` of each `y`.
"""

from numba import prange

from kvchat.kernels.cpu.numbers import F32, LINE, both, fetch, jit, up

TOGETHER = 4  # vectors whose sums are alive at once
TILE, PIECE = 16, 1024  # rows, and inputs of four vectors, that stay close to the processor
DEEP = 1536  # inputs of which four vectors stay close by themselves
AHEAD = 2  # rows that are asked for before they are wanted


@jit()
def _four(row, p, q, r, k):
    """Products of a row with four vectors."""
    s, t, u, v = F32(0), F32(0), F32(0), F32(0)
    for i in range(row.size):
        value = up(row[i])
        s += value * p[i]
        t += value * q[i]
        u += value * r[i]
        v += value * k[i]
    return s, t, u, v


@jit()
def _deep(w, first, end, x, b, y, at):
    """Rows `first` to `end` and vectors `b` to `b + 3`, piece by piece: together they are too long
    for the nearest cache, and then rows do not come by themselves in time."""
    inputs = w.shape[1]
    for a in range(0, inputs, PIECE):
        z = min(a + PIECE, inputs)
        p, q, r, k = x[b, a:z], x[b + 1, a:z], x[b + 2, a:z], x[b + 3, a:z]
        for o in range(first, end):
            for line in range(a * w.itemsize, z * w.itemsize, LINE):
                fetch(w, o + AHEAD, line)
            s, t, u, v = _four(w[o, a:z], p, q, r, k)
            if a > 0:
                s, t = s + y[b, at + o], t + y[b + 1, at + o]
                u, v = u + y[b + 2, at + o], v + y[b + 3, at + o]
            y[b, at + o], y[b + 1, at + o] = s, t
            y[b + 2, at + o], y[b + 3, at + o] = u, v


@jit()
def _rows(w, first, end, x, y, at):
    """The outputs of rows `first` to `end` of `w`."""
    inputs, four = w.shape[1], len(x) - len(x) % TOGETHER
    for b in range(0, four, TOGETHER):
        if inputs > DEEP:
            _deep(w, first, end, x, b, y, at)
            continue
        for o in range(first, end):
            s, t, u, v = F32(0), F32(0), F32(0), F32(0)
            for i in range(inputs):
                value = up(w[o, i])
                s += value * x[b, i]
                t += value * x[b + 1, i]
                u += value * x[b + 2, i]
                v += value * x[b + 3, i]
            y[b, at + o], y[b + 1, at + o] = s, t
            y[b + 2, at + o], y[b + 3, at + o] = u, v
    for b in range(four, len(x)):
        for o in range(first, end):
            total = F32(0)
            for i in range(inputs):
                total += up(w[o, i]) * x[b, i]
            y[b, at + o] = total


def _gemm(w, x, y, at):
    """`y [B, at : at + out] = x [B, in] w^T`, w `[out, in]` in f32, bf16 or f16."""
    for tile in prange((len(w) + TILE - 1) // TILE):
        _rows(w, tile * TILE, min(tile * TILE + TILE, len(w)), x, y, at)


def _gemm_rows(w, scale, x, y, at):
    """The same of int8 codes with a scale per row: `w = codes * scale`."""
    for tile in prange((len(w) + TILE - 1) // TILE):
        first, end = tile * TILE, min(tile * TILE + TILE, len(w))
        _rows(w, first, end, x, y, at)
        for b in range(len(x)):
            for o in range(first, end):
                y[b, at + o] *= up(scale[o])


gemm, gemm_parallel = both(_gemm)
gemm_rows, gemm_rows_parallel = both(_gemm_rows)
PAIRS = (gemm, gemm_parallel), (gemm_rows, gemm_rows_parallel)


@jit()
def gemm_joined(a, b, c, x, y, at):
    """`y = x [a; b; c]^T`: several matrices of one input in one call; c may have no rows.

    For a call costs as much as a small product.
    """
    gemm(a, x, y, at)
    gemm(b, x, y, at + len(a))
    gemm(c, x, y, at + len(a) + len(b))


@jit()
def gemm_rows_joined(a, b, c, a_scale, b_scale, c_scale, x, y, at):
    """The same of int8 codes with scales."""
    gemm_rows(a, a_scale, x, y, at)
    gemm_rows(b, b_scale, x, y, at + len(a))
    gemm_rows(c, c_scale, x, y, at + len(a) + len(b))
