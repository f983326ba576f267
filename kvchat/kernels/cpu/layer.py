"""What stands between the products of one token's layer: norms, positions, the entry, the gate.

Arrays of length 0 stand for what a model does not have: biases, norms, factors.
"""

import numpy as np

from kvchat.kernels.cpu.numbers import F32, HIGHEST, down, exp, jit, tanh, up

TANH_GELU = F32(0.7978845608028654)  # sqrt(2 / pi)


@jit()
def norm(x, weight, eps, y):
    """`y [n] = x / rms(x) * weight`; without a weight, x itself."""
    if weight.size == 0:
        for i in range(x.size):
            y[i] = x[i]
        return
    total = F32(0)
    for i in range(x.size):
        total += x[i] * x[i]
    scale = F32(1) / np.sqrt(total / F32(x.size) + eps)
    for i in range(x.size):
        y[i] = x[i] * scale * up(weight[i])


@jit()
def _normed(x, weight, eps, dim):
    """Norm every `dim` values of `x` by themselves, in place; `weight` is as long as x or one."""
    for start in range(0, x.size, dim):
        total = F32(0)
        for i in range(dim):
            total += x[start + i] * x[start + i]
        scale = F32(1) / np.sqrt(total / F32(dim) + eps)
        for i in range(dim):
            x[start + i] *= scale * up(weight[i])


@jit()
def place(
    qkv, q_bias, k_bias, v_bias, q_norm, k_norm, eps, cos, sin, factors, raised, keys, values, at
):
    """Finish queries, keys and values `qkv [(H*G + 2H) * D]` of one token, and store its entry.

    In this order: biases, norms (of every head where a weight has D values, else of all), rotary
    positions `cos, sin [D/2]`, what queries are multiplied by (`factors [D]`, and `raised`); then
    key and value go into `keys, values [H, capacity, D]` at place `at`.
    """
    heads, _, dim = keys.shape
    half, width = dim // 2, heads * dim
    queries = qkv.size - 2 * width
    for i in range(q_bias.size):
        qkv[i] += up(q_bias[i])
    for i in range(k_bias.size):
        qkv[queries + i] += up(k_bias[i])
    for i in range(v_bias.size):
        qkv[queries + width + i] += up(v_bias[i])
    if q_norm.size:
        _normed(qkv[:queries], q_norm, eps, q_norm.size)
        _normed(qkv[queries : queries + width], k_norm, eps, k_norm.size)
    for start in range(0, queries + width, dim):
        for i in range(half):
            a, b = qkv[start + i], qkv[start + half + i]
            qkv[start + i] = a * cos[i] - b * sin[i]
            qkv[start + half + i] = b * cos[i] + a * sin[i]
    for start in range(0, queries, dim):
        for i in range(factors.size):
            qkv[start + i] *= factors[i]
    if raised != F32(1):
        for i in range(queries):
            qkv[i] *= raised
    for head in range(heads):
        k, v = queries + head * dim, queries + width + head * dim
        for i in range(dim):
            keys[head, at, i] = down(qkv[k + i], keys[head, at, i])
            values[head, at, i] = down(qkv[v + i], values[head, at, i])


@jit()
def add(x, delta, bias, behind, scale, before, eps, y):
    """`x += norm(delta + bias, behind) * scale`, then `y = norm(x, before)`."""
    for i in range(bias.size):
        delta[i] += up(bias[i])
    if behind.size:
        norm(delta, behind, eps, delta)
    for i in range(x.size):
        x[i] += delta[i] * scale
    norm(x, before, eps, y)


@jit()
def gate(both, gate_bias, up_bias, gelu, y):
    """`y [n] = f(both[:n]) * both[n:]` with biases added before; f is SiLU or GELU by tanh."""
    inner = y.size
    for i in range(gate_bias.size):
        both[i] += up(gate_bias[i])
        both[inner + i] += up(up_bias[i])
    if gelu:
        for i in range(inner):
            g = both[i]
            bent = tanh(TANH_GELU * (g + F32(0.044715) * g * g * g))
            y[i] = F32(0.5) * g * (F32(1) + bent) * both[inner + i]
    else:
        for i in range(inner):
            y[i] = both[i] / (F32(1) + exp(min(-both[i], HIGHEST))) * both[inner + i]
