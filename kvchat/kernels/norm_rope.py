"""The small operations of a decoder block: RMS norm, rotary embedding, gates."""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_HIDDEN = 65536  # values of a row that one program holds


@triton.jit
def _scaled(wide, weight, i, inside, eps, SIZE: tl.constexpr):
    """A row over its root mean square, times the norm's weight; all in fp32."""
    wide *= tl.rsqrt(tl.sum(wide * wide, 0) / SIZE + eps)
    return wide * tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _norm(
    x, delta, behind, weight, added, out, scale, eps, SIZE: tl.constexpr, SUM: tl.constexpr,
    BEHIND: tl.constexpr, BEFORE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One row: the sum with `delta`, normed by itself with BEHIND, and with BEFORE the norm of
    that."""
    i = tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * SIZE + i
    inside = i < SIZE
    wide = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    kind: tl.constexpr = out.dtype.element_ty
    if SUM:
        change = tl.load(delta + at, mask=inside, other=0.0).to(tl.float32)
        if BEHIND:
            change = _scaled(change, behind, i, inside, eps, SIZE).to(kind).to(tl.float32)
        row = (wide + change * scale).to(kind)
        tl.store(added + at, row, mask=inside)
        wide = row.to(tl.float32)  # what the next layer reads is what is normed
    if BEFORE:
        tl.store(out + at, _scaled(wide, weight, i, inside, eps, SIZE).to(kind), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See the reference: shape and dtype of `x`."""
    x = x.contiguous()
    out = torch.empty_like(x)
    _launch(x, None, weight, x, out, eps, None, 1.0)
    return out


def add_rms_norm(
    x: Tensor,
    delta: Tensor,
    weight: Tensor | None,
    eps: float,
    behind: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """See the reference: the sum and its norm, both read and written once."""
    assert x.shape == delta.shape and x.dtype == delta.dtype, (x.shape, delta.shape)
    x = x.contiguous()
    added = torch.empty_like(x)
    out = added if weight is None else torch.empty_like(x)
    _launch(x, delta.contiguous(), weight, added, out, eps, behind, scale)
    return added, out


def _launch(
    x: Tensor, delta: Tensor | None, weight: Tensor | None, added: Tensor, out: Tensor, eps: float,
    behind: Tensor | None, scale: float
) -> None:  # fmt: skip
    """What is not there is not read; `x` stands for it."""
    size = x.shape[-1]
    assert size <= MAX_HIDDEN, size
    for each in (weight, behind):
        assert each is None or (each.shape == (size,) and each.is_contiguous()), size
    if x.numel():
        block = triton.next_power_of_2(size)
        _norm[(x.numel() // size,)](
            x, x if delta is None else delta, x if behind is None else behind,
            x if weight is None else weight, added, out, scale, eps, SIZE=size,
            SUM=delta is not None, BEHIND=behind is not None, BEFORE=weight is not None,
            BLOCK=block, num_warps=min(16, max(1, block // 512)),
        )  # fmt: skip


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
def _gated(gate, up, out, size, gate_row, up_row, GELU: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK values of one row."""
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    g = tl.load(gate + row * gate_row + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_row + at, mask=inside, other=0.0).to(tl.float32)
    if GELU:  # tanh(z) = 2 * sigmoid(2 z) - 1
        opened = g * tl.sigmoid(1.5957691216057308 * (g + 0.044715 * g * g * g))
    else:
        opened = g * tl.sigmoid(g)
    tl.store(out + row * size + at, (opened * u).to(out.dtype.element_ty), mask=inside)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See the reference: `silu(gate) * up`, element by element."""
    return _open(gate, up, False)


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """See the reference: `gelu(gate) * up`, element by element."""
    return _open(gate, up, True)


def _open(gate: Tensor, up: Tensor, gelu: bool) -> Tensor:
    """Rows may be parts of wider ones: gate and up are halves of one product."""
    assert gate.shape == up.shape and gate.dtype == up.dtype and gate.dim() == 2, gate.shape
    assert gate.stride(1) == up.stride(1) == 1, (gate.stride(), up.stride())
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    rows, size = gate.shape
    if gate.numel():
        _gated[(triton.cdiv(size, 1024), rows)](
            gate, up, out, size, gate.stride(0), up.stride(0), GELU=gelu, BLOCK=1024, num_warps=4
        )
    return out
