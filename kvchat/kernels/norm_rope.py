"""The small operations of a decoder block: RMS norm, rotary embedding, SwiGLU."""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_HIDDEN = 65536  # values of a row that one program holds


@triton.jit
def _norm(x, delta, weight, added, out, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """One row: the sum with `delta` if there is one, and its norm."""
    i = tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * SIZE + i
    inside = i < SIZE
    wide = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if delta is not None:
        wide += tl.load(delta + at, mask=inside, other=0.0).to(tl.float32)
        row = wide.to(added.dtype.element_ty)
        tl.store(added + at, row, mask=inside)
        wide = row.to(tl.float32)  # what the next layer reads is what is normed
    wide *= tl.rsqrt(tl.sum(wide * wide, 0) / SIZE + eps)
    gain = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (wide * gain).to(out.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See the reference: shape and dtype of `x`."""
    return _normed(x.contiguous(), None, weight, eps)[1]


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See the reference: `x + delta` and its norm, both read and written once."""
    assert x.shape == delta.shape and x.dtype == delta.dtype, (x.shape, delta.shape)
    return _normed(x.contiguous(), delta.contiguous(), weight, eps)


def _normed(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    size = x.shape[-1]
    assert weight.shape == (size,) and weight.is_contiguous() and size <= MAX_HIDDEN, weight.shape
    out = torch.empty_like(x)
    added = x if delta is None else torch.empty_like(x)
    if x.numel():
        block = triton.next_power_of_2(size)
        _norm[(x.numel() // size,)](
            x, delta, weight, added, out, eps, SIZE=size, BLOCK=block,
            num_warps=min(16, max(1, block // 512)),
        )  # fmt: skip
    return added, out


@triton.jit
def _rope(x, cos, sin, out, heads, x_token, x_head, HALF: tl.constexpr, BLOCK_H: tl.constexpr,
          BLOCK_D: tl.constexpr):  # fmt: skip
    """BLOCK_H heads of one token."""
    token = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    d = tl.arange(0, BLOCK_D)
    inside = (h < heads)[:, None] & (d < HALF)[None, :]
    c = tl.load(cos + token * HALF + d, mask=d < HALF, other=0.0)[None, :]
    s = tl.load(sin + token * HALF + d, mask=d < HALF, other=0.0)[None, :]
    at = token * x_token + h.to(tl.int64)[:, None] * x_head + d[None, :]
    first = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + at + HALF, mask=inside, other=0.0).to(tl.float32)
    to = (token * heads + h.to(tl.int64)[:, None]) * 2 * HALF + d[None, :]
    kind: tl.constexpr = out.dtype.element_ty
    tl.store(out + to, (first * c - second * s).to(kind), mask=inside)
    tl.store(out + to + HALF, (second * c + first * s).to(kind), mask=inside)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See the reference: `x [T, heads, D]` turned by `cos, sin [T, D/2]` (fp32)."""
    tokens, heads, dim = x.shape
    assert x.stride(2) == 1 and cos.shape == sin.shape == (tokens, dim // 2), (x.shape, cos.shape)
    assert cos.dtype == sin.dtype == torch.float32, cos.dtype
    out = x.new_empty(x.shape)
    if x.numel():
        block = min(16, triton.next_power_of_2(heads))
        _rope[(tokens, triton.cdiv(heads, block))](
            x, cos.contiguous(), sin.contiguous(), out, heads, x.stride(0), x.stride(1),
            HALF=dim // 2, BLOCK_H=block, BLOCK_D=triton.next_power_of_2(dim // 2), num_warps=2,
        )  # fmt: skip
    return out


@triton.jit
def _swiglu(gate, up, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (g * tl.sigmoid(g) * u).to(out.dtype.element_ty), mask=inside)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See the reference: `silu(gate) * up`, element by element."""
    assert gate.shape == up.shape and gate.dtype == up.dtype, (gate.shape, up.shape)
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    if gate.numel():
        _swiglu[(triton.cdiv(gate.numel(), 1024),)](
            gate, up, out, gate.numel(), BLOCK=1024, num_warps=4
        )
    return out
