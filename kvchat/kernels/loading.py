"""How attention kernels read a block of entries: as numbers, or as codes of few bits and their
scales.

`kernels.entries.Packing` says how codes are stored.
"""

import triton
import triton.language as tl

PACKED_ROWS = tl.constexpr(32)  # entries that share the scale of a channel of packed keys


@triton.jit
def _load_codes(
    store, at, live, BITS: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr
):  # fmt: skip
    """Codes of entries `at [N]` as fp32 `[N, BLOCK_D]`."""
    if BITS == 8:
        d = tl.arange(0, BLOCK_D)
        mask = live[:, None] & (d < D)[None, :]
        return tl.load(store + at[:, None] * D + d[None, :], mask=mask, other=0).to(tl.float32)
    elif BITS == 4:
        d = tl.arange(0, BLOCK_D // 2)
        mask = live[:, None] & (d < D // 2)[None, :]
        pair = tl.load(store + at[:, None] * (D // 2) + d[None, :], mask=mask, other=0)
        return tl.interleave(pair & 15, pair >> 4).to(tl.float32)
    else:
        d = tl.arange(0, BLOCK_D // 4)
        mask = live[:, None] & (d < D // 4)[None, :]
        four = tl.load(store + at[:, None] * (D // 4) + d[None, :], mask=mask, other=0)
        even = tl.interleave(four & 3, (four >> 4) & 3)
        odd = tl.interleave((four >> 2) & 3, four >> 6)
        return tl.interleave(even, odd).to(tl.float32)


@triton.jit
def load_keys(
    part, at, live, BITS: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, dtype: tl.constexpr
):  # fmt: skip
    """Keys of entries `at [N]`, `[N, BLOCK_D]`; `part` is as the launcher of attention makes it."""
    d = tl.arange(0, BLOCK_D)
    if BITS == 16:
        mask = live[:, None] & (d < D)[None, :]
        return tl.load(part[0] + at[:, None] * part[9] + d[None, :], mask=mask, other=0.0)
    else:
        codes = _load_codes(part[0], at, live, BITS, D, BLOCK_N, BLOCK_D)
        group = tl.min(at, 0) // PACKED_ROWS  # a block of packed entries is one group
        scale = tl.load(part[5] + group * D + d, mask=d < D, other=0.0).to(tl.float32)
        zero = tl.load(part[6] + group * D + d, mask=d < D, other=0.0).to(tl.float32)
        return (codes * scale[None, :] + zero[None, :]).to(dtype)


@triton.jit
def load_values(
    part, at, live, BITS: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, GROUP: tl.constexpr, dtype: tl.constexpr
):  # fmt: skip
    """Values of entries `at [N]`; GROUP channels share a scale."""
    if BITS == 16:
        d = tl.arange(0, BLOCK_D)
        mask = live[:, None] & (d < D)[None, :]
        return tl.load(part[1] + at[:, None] * part[9] + d[None, :], mask=mask, other=0.0)
    else:
        codes = _load_codes(part[1], at, live, BITS, D, BLOCK_N, BLOCK_D)
        g = tl.arange(0, BLOCK_D // GROUP)
        mask = live[:, None] & (g < D // GROUP)[None, :]
        where = at[:, None] * (D // GROUP) + g[None, :]
        scale = tl.load(part[7] + where, mask=mask, other=0.0).to(tl.float32)
        zero = tl.load(part[8] + where, mask=mask, other=0.0).to(tl.float32)
        grouped = tl.reshape(codes, [BLOCK_N, BLOCK_D // GROUP, GROUP])
        grouped = grouped * scale[:, :, None] + zero[:, :, None]
        return tl.reshape(grouped, [BLOCK_N, BLOCK_D]).to(dtype)
