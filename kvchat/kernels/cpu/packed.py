"""Attention of one token over entries in 8, 4 or 2 bits; see `kernels.entries.Packing`.

Nothing is turned back into numbers as they were: scales of keys go into the queries, for 32 entries
at a time, scales of values into the weights, and zeros into one summand each. Channels of codes
below 8 bits are taken in another order, see `codes.py`.
"""

from numba import prange

from kvchat.kernels.cpu.attention import (
    AHEAD,
    BLOCK,
    begin,
    dots_1,
    dots_2,
    dots_4,
    finish,
    weigh,
)
from kvchat.kernels.cpu.codes import GROUP, LANES, adder, unpacker
from kvchat.kernels.cpu.numbers import F32, LINE, both, fetch, jit, up

_add_8_1, _add_8_2, _add_8_4 = (adder(queries, 8) for queries in (1, 2, 4))
_add_4_1, _add_4_2, _add_4_4 = (adder(queries, 4) for queries in (1, 2, 4))
_add_2_1, _add_2_2, _add_2_4 = (adder(queries, 2) for queries in (1, 2, 4))
_halves, _quarters = unpacker(4), unpacker(2)


@jit()
def _parted(x, room, each):
    """Of `x [D]` the first of every `each` channels, then the second ones; `room [D]`."""
    part = x.size // each
    for i in range(x.size):
        room[i] = x[i]
    for j in range(each):
        for i in range(part):
            x[j * part + i] = room[each * i + j]


@jit()
def _joined(x, room, each):
    """The inverse of `_parted`."""
    part = x.size // each
    for i in range(x.size):
        room[i] = x[i]
    for j in range(each):
        for i in range(part):
            x[each * i + j] = room[j * part + i]


@jit()
def _ask(packed, a):
    """Ask for 32 entries that are wanted soon."""
    for n in range(GROUP):
        for line in range(0, packed.shape[1], LINE):
            fetch(packed, a + n + AHEAD, line)


@jit()
def _codes(packed, a, bits, room):
    """The codes of 32 entries from `a` on, a byte each: `[32, D]`; below 8 bits in `room`."""
    _ask(packed, a)
    if bits == 8:
        return packed[a : a + GROUP]
    wide, each, mask = packed.shape[1], 8 // bits, (1 << bits) - 1
    for n in range(GROUP):
        for i in range(0, wide - LANES + 1, LANES):
            if bits == 4:
                _halves(packed, (a + n) * wide + i, room, n * each * wide + i, wide)
            else:
                _quarters(packed, (a + n) * wide + i, room, n * each * wide + i, wide)
        for i in range(wide - wide % LANES, wide):
            byte = packed[a + n, i]
            for j in range(each):
                room[n, j * wide + i] = (byte >> (bits * j)) & mask
    return room


@jit()
def _steps(scale, zero, each, steps):
    """Scales and zeros of channels as numbers `[2, D]`, in the order of `_parted`."""
    part = scale.size // each
    for j in range(each):
        for i in range(part):
            steps[0, j * part + i] = up(scale[each * i + j])
            steps[1, j * part + i] = up(zero[each * i + j])


@jit()
def _scaled(asked, scale, zero, bits, width, steps, queries, rest):
    """`asked [width, D]` times the scales of a group of keys, and its products with their zeros.

    These go into `rest [width]`; `steps [2, D]` is room.
    """
    dim = asked.shape[1]
    if bits == 8:
        _steps(scale, zero, 1, steps)
    elif bits == 4:
        _steps(scale, zero, 2, steps)
    else:
        _steps(scale, zero, 4, steps)
    for g in range(width):
        total = F32(0)
        for i in range(dim):
            queries[g, i] = asked[g, i] * steps[0, i]
            total += asked[g, i] * steps[1, i]
        rest[g] = total


@jit()
def _sum(rows, packed, a, scale, zero, bits, width, steps, o):
    """Add values of 32 entries from `a` on, by weights `rows [width, 32]`, to `o [width, D]`.

    `rows` are `BLOCK` numbers apart; `scale, zero [R, D/g]`; `steps [2, 32 * D/g]` is room.
    """
    _ask(packed, a)
    groups, wide = scale.shape[1], packed.shape[1]
    size = wide // groups  # bytes of a group of channels
    scales, zeros, flat = steps[0], steps[1], a * groups
    every_scale, every_zero = scale.reshape(scale.size), zero.reshape(zero.size)
    for n in range(GROUP * groups):
        scales[n] = up(every_scale[flat + n])
    for n in range(GROUP * groups):
        zeros[n] = up(every_zero[flat + n])
    if size != 4 * bits:  # heads of unusual sizes
        mask = (1 << bits) - 1
        for n in range(GROUP):
            for i in range(wide):
                step, least = scales[n * groups + i // size], zeros[n * groups + i // size]
                for j in range(8 // bits):
                    code = (packed[a + n, i] >> (bits * j)) & mask
                    for g in range(width):
                        o[g, j * wide + i] += rows[g, n] * (F32(code) * step + least)
        return
    for j in range(groups):
        i = size * j
        p = a * wide + i
        if bits == 8:
            if width == 1:
                _add_8_1(packed, p, wide, scales, zeros, j, groups, rows, BLOCK, o, i, LANES)
            elif width == 2:
                _add_8_2(packed, p, wide, scales, zeros, j, groups, rows, BLOCK, o, i, LANES)
            else:
                _add_8_4(packed, p, wide, scales, zeros, j, groups, rows, BLOCK, o, i, LANES)
        elif bits == 4:
            if width == 1:
                _add_4_1(packed, p, wide, scales, zeros, j, groups, rows, BLOCK, o, i, wide)
            elif width == 2:
                _add_4_2(packed, p, wide, scales, zeros, j, groups, rows, BLOCK, o, i, wide)
            else:
                _add_4_4(packed, p, wide, scales, zeros, j, groups, rows, BLOCK, o, i, wide)
        elif width == 1:
            _add_2_1(packed, p, wide, scales, zeros, j, groups, rows, BLOCK, o, i, wide)
        elif width == 2:
            _add_2_2(packed, p, wide, scales, zeros, j, groups, rows, BLOCK, o, i, wide)
        else:
            _add_2_4(packed, p, wide, scales, zeros, j, groups, rows, BLOCK, o, i, wide)


def _attend_packed(
    q, k, v, k_scale, k_zero, v_scale, v_zero, bits, start, length, bias, scale, cap, width,
    splits, fresh, last, o, top, total, queries, logits, bytes_, floats, more, out, lse,
):  # fmt: skip
    """`attention.attend` over a set in few `bits`; `bytes_ [H*splits, 32, D]` (uint8),
    `floats [H*splits, 7, D]` and `more [H*splits, 2, 32 * D/g]` are room too.
    """
    heads = start.size
    group, wide = q.shape[0] // heads, o.shape[1]
    for task in prange(heads * splits):
        head, piece = task // splits, task % splits
        # whole groups of keys
        each = (length[head] // GROUP + splits - 1) // splits * GROUP
        first = start[head] + min(piece * each, length[head])
        end = start[head] + min((piece + 1) * each, length[head])
        asked, room, few = queries[task], bytes_[task], floats[task]
        steps, scaled, rest = few[:2], few[2:6], few[6]
        begin(q, head, group, fresh, asked, o[task], top[task], total[task])
        if bits < 8:
            for g in range(wide):
                _parted(asked[g], steps[0], 8 // bits)
                _parted(o[task, g], steps[0], 8 // bits)
        for a in range(first, end, BLOCK):
            count = min(BLOCK, end - a)
            for g in range(0, wide, width):
                some, sums = asked[g : g + width], o[task, g : g + width]
                rows = logits[task, g : g + width]
                for b in range(0, count, GROUP):
                    part, own = rows[:, b : b + GROUP], (a + b) // GROUP
                    _scaled(some, k_scale[own], k_zero[own], bits, width, steps, scaled, rest)
                    codes = _codes(k, a + b, bits, room)
                    if width == 1:
                        dots_1(scaled, codes, 0, GROUP, part)
                    elif width == 2:
                        dots_2(scaled, codes, 0, GROUP, part)
                    else:
                        dots_4(scaled, codes, 0, GROUP, part)
                    for h in range(width):
                        for n in range(GROUP):
                            part[h, n] += rest[h]
                for h in range(min(width, group - g)):
                    top[task, g + h], total[task, g + h] = weigh(
                        rows[h], count, scale, cap, bias, a,
                        top[task, g + h], total[task, g + h], sums[h],
                    )  # fmt: skip
                for b in range(0, count, GROUP):
                    part = rows[:, b : b + GROUP]
                    _sum(part, v, a + b, v_scale, v_zero, bits, width, more[task], sums)
        if bits < 8:
            for g in range(wide):
                _joined(o[task, g], steps[0], 8 // bits)
    if last:
        finish(o, top, total, splits, out, lse)


attend_packed, attend_packed_parallel = both(_attend_packed)
