"""Products of a matrix and a few vectors: the linear maps of one token of each asker.

A row of the matrix is read once for all of them. Outputs begin at number `at` of each `y`.
"""

from numba import prange

from kvchat.kernels.cpu.numbers import F32, both, jit, up

TOGETHER = 4  # vectors whose sums are alive at once


def _gemm(w, x, y, at):
    """`y [B, at : at + out] = x [B, in] w^T`, w `[out, in]` in f32, bf16 or f16."""
    outputs, inputs = w.shape
    for o in prange(outputs):
        four = len(x) - len(x) % TOGETHER
        for b in range(0, four, TOGETHER):
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
            total = F32(0)
            for i in range(inputs):
                total += up(w[o, i]) * x[b, i]
            y[b, at + o] = total


def _gemm_rows(w, scale, x, y, at):
    """The same of int8 codes with a scale per row: `w = codes * scale`."""
    outputs, inputs = w.shape
    for o in prange(outputs):
        four, step = len(x) - len(x) % TOGETHER, up(scale[o])
        for b in range(0, four, TOGETHER):
            s, t, u, v = F32(0), F32(0), F32(0), F32(0)
            for i in range(inputs):
                value = F32(w[o, i])
                s += value * x[b, i]
                t += value * x[b + 1, i]
                u += value * x[b + 2, i]
                v += value * x[b + 3, i]
            y[b, at + o], y[b + 1, at + o] = s * step, t * step
            y[b + 2, at + o], y[b + 3, at + o] = u * step, v * step
        for b in range(four, len(x)):
            total = F32(0)
            for i in range(inputs):
                total += F32(w[o, i]) * x[b, i]
            y[b, at + o] = total * step


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
