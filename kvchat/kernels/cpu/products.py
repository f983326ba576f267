"""Products of a matrix and a vector: one token's linear maps."""

from numba import prange

from kvchat.kernels.cpu.numbers import F32, both, jit, up


def _gemv(w, x, y):
    """`y [out] = w [out, in] x [in]`, w in f32, bf16 or f16."""
    outputs, inputs = w.shape
    for o in prange(outputs):
        total = F32(0)
        for i in range(inputs):
            total += up(w[o, i]) * x[i]
        y[o] = total


def _gemv_rows(w, scale, x, y):
    """The same of int8 codes with a scale per row: `w = codes * scale`."""
    outputs, inputs = w.shape
    for o in prange(outputs):
        total = F32(0)
        for i in range(inputs):
            total += F32(w[o, i]) * x[i]
        y[o] = total * up(scale[o])


gemv, gemv_parallel = both(_gemv)
gemv_rows, gemv_rows_parallel = both(_gemv_rows)
PAIRS = (gemv, gemv_parallel), (gemv_rows, gemv_rows_parallel)


@jit()
def gemv_joined(a, b, c, x, y):
    """`y = [a; b; c] x`: several matrices of one input in one call; c may have no rows.

    For a call costs as much as a small product.
    """
    gemv(a, x, y[: len(a)])
    gemv(b, x, y[len(a) : len(a) + len(b)])
    gemv(c, x, y[len(a) + len(b) :])


@jit()
def gemv_rows_joined(a, b, c, a_scale, b_scale, c_scale, x, y):
    """The same of int8 codes with scales."""
    gemv_rows(a, a_scale, x, y[: len(a)])
    gemv_rows(b, b_scale, x, y[len(a) : len(a) + len(b)])
    gemv_rows(c, c_scale, x, y[len(a) + len(b) :])
