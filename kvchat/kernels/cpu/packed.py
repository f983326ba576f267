"""Attention of one token over entries in 8 or 4 bits; see `kernels.entries.Packing`.

Nothing is turned back into numbers as they were: scales of keys go into the queries, for 32 entries
at a time, scales of values into the weights, and zeros into one summand each. Channels of 4-bit
codes are taken in another order, the even ones before the odd: so a byte becomes two by one shift.
"""

from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

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
from kvchat.kernels.cpu.numbers import F32, LINE, both, fetch, jit, up

GROUP = 32  # entries of a key channel that share a scale
LANES = 16  # codes that are turned into numbers at once
I8, I64, F = ir.IntType(8), ir.IntType(64), ir.FloatType()
CODES, FLOATS = ir.VectorType(I8, LANES), ir.VectorType(F, LANES)


def _every(kind: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(kind, [value] * LANES)


def _loaded(b, base, place, kind):
    """A vector at a byte of an array."""
    start = b.gep(b.bitcast(base, I8.as_pointer()), [place])
    return b.load(b.bitcast(start, kind.as_pointer()), align=1)


def _halves(b, codes):
    """The lower and the upper 4 bits of bytes."""
    return b.and_(codes, _every(CODES, 15)), b.lshr(codes, _every(CODES, 4))


@intrinsic
def _part(context, packed, place, room, to, half):
    """16 bytes at `place` of packed codes into two times 16 at byte `to` of `room`."""

    def code(c, b, s, a):
        given, out = (c.make_array(s.args[n])(c, b, a[n]).data for n in (0, 2))
        for part, at in zip(
            _halves(b, _loaded(b, given, a[1], CODES)), (a[3], b.add(a[3], a[4])), strict=True
        ):
            b.store(part, b.bitcast(b.gep(out, [at]), CODES.as_pointer()), align=1)
        return c.get_dummy_value()

    return types.void(packed, types.int64, room, types.int64, types.int64), code


def _adder(queries: int, bits: int):
    """What adds 32 entries' values of 32 channels with one scale to sums.

    `add(codes, place, step, scales, zeros, first, each, rows, ahead, o, at, half)`: codes begin at
    byte `place`, those of the next entry `step` bytes on; the scale of the first is number `first`,
    that of the next one `each` on; weights are `rows`, those of the next query `ahead` on. Sums
    begin at number `at` of `o [queries, D]`; those of the other 16 channels `half` on.
    """

    @intrinsic
    def add(context, codes, place, step, scales, zeros, first, each, rows, ahead, o, at, half):
        def code(c, b, s, a):
            arrays = {n: c.make_array(s.args[n])(c, b, a[n]) for n in (0, 3, 4, 7, 9)}
            given, steps, least, weights, sums = (arrays[n].data for n in (0, 3, 4, 7, 9))
            across = b.udiv(b.extract_value(arrays[9].strides, 0), I64(4))
            fast, places = ("fast",), [(g, which) for g in range(queries) for which in (0, 1)]

            def spread(base, number):
                value = b.load(b.gep(base, [number]))
                one = b.insert_element(ir.Constant(FLOATS, ir.Undefined), value, I64(0))
                mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
                return b.shuffle_vector(one, one, mask)

            found = {place: cgutils.alloca_once(b, FLOATS) for place in places}
            for total in found.values():
                b.store(_every(FLOATS, 0.0), total)
            with cgutils.for_range(b, I64(GROUP)) as loop:
                at = b.add(a[1], b.mul(a[2], loop.index))
                parts = [_loaded(b, given, at, CODES)]
                if bits == 4:
                    parts = _halves(b, *parts)
                else:
                    parts.append(_loaded(b, given, b.add(at, I64(LANES)), CODES))
                number = b.add(a[5], b.mul(a[6], loop.index))
                scale, zero = spread(steps, number), spread(least, number)
                values = [
                    b.fadd(b.fmul(b.uitofp(part, FLOATS), scale, fast), zero, fast)
                    for part in parts
                ]
                for (g, which), total in found.items():
                    weight = spread(weights, b.add(b.mul(a[8], I64(g)), loop.index))
                    product = b.fmul(weight, values[which], fast)
                    b.store(b.fadd(b.load(total), product, fast), total)
            for (g, which), total in found.items():
                number = b.add(a[10], b.mul(across, I64(g)))
                number = b.add(number, b.mul(a[11], I64(which)))
                start = b.bitcast(b.gep(sums, [number]), FLOATS.as_pointer())
                b.store(b.fadd(b.load(start, align=4), b.load(total), fast), start, align=4)
            return c.get_dummy_value()

        n = types.int64
        return types.void(codes, n, n, scales, zeros, n, n, rows, n, o, n, n), code

    return add


_add_1, _add_2, _add_4 = (_adder(queries, 8) for queries in (1, 2, 4))
_add_half_1, _add_half_2, _add_half_4 = (_adder(queries, 4) for queries in (1, 2, 4))


@jit()
def _parted(x, room):
    """Even channels of `x [D]` first, then the odd ones; `room [D]`."""
    half = x.size // 2
    for i in range(x.size):
        room[i] = x[i]
    for i in range(half):
        x[i], x[half + i] = room[2 * i], room[2 * i + 1]


@jit()
def _joined(x, room):
    """The inverse of `_parted`."""
    half = x.size // 2
    for i in range(x.size):
        room[i] = x[i]
    for i in range(half):
        x[2 * i], x[2 * i + 1] = room[i], room[half + i]


@jit()
def _ask(packed, a):
    """Ask for 32 entries that are wanted soon."""
    for n in range(GROUP):
        for line in range(0, packed.shape[1], LINE):
            fetch(packed, a + n + AHEAD, line)


@jit()
def _codes(packed, a, bits, room):
    """The codes of 32 entries from `a` on, a byte each: `[32, D]`, those of 4 bits in `room`."""
    _ask(packed, a)
    if bits == 8:
        return packed[a : a + GROUP]
    half = packed.shape[1]
    for n in range(GROUP):
        for i in range(0, half - LANES + 1, LANES):
            _part(packed, (a + n) * half + i, room, n * 2 * half + i, half)
        for i in range(half - half % LANES, half):
            byte = packed[a + n, i]
            room[n, i], room[n, half + i] = byte & 15, byte >> 4
    return room


@jit()
def _scaled(asked, scale, zero, bits, width, steps, queries, rest):
    """`asked [width, D]` times the scales of a group of keys, and its products with their zeros.

    These go into `rest [width]`; `steps [2, D]` is room.
    """
    dim = asked.shape[1]
    if bits == 8:
        for i in range(dim):
            steps[0, i], steps[1, i] = up(scale[i]), up(zero[i])
    else:
        half = dim // 2
        for i in range(half):
            steps[0, i], steps[0, half + i] = up(scale[2 * i]), up(scale[2 * i + 1])
            steps[1, i], steps[1, half + i] = up(zero[2 * i]), up(zero[2 * i + 1])
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
        for n in range(GROUP):
            for i in range(wide):
                step, least = scales[n * groups + i // size], zeros[n * groups + i // size]
                byte = packed[a + n, i]
                for g in range(width):
                    if bits == 8:
                        o[g, i] += rows[g, n] * (F32(byte) * step + least)
                    else:
                        o[g, i] += rows[g, n] * (F32(byte & 15) * step + least)
                        o[g, wide + i] += rows[g, n] * (F32(byte >> 4) * step + least)
        return
    for j in range(groups):
        i = size * j
        p = a * wide + i
        if bits == 8:
            if width == 1:
                _add_1(packed, p, wide, scales, zeros, j, groups, rows, BLOCK, o, i, LANES)
            elif width == 2:
                _add_2(packed, p, wide, scales, zeros, j, groups, rows, BLOCK, o, i, LANES)
            else:
                _add_4(packed, p, wide, scales, zeros, j, groups, rows, BLOCK, o, i, LANES)
        elif width == 1:
            _add_half_1(packed, p, wide, scales, zeros, j, groups, rows, BLOCK, o, i, wide)
        elif width == 2:
            _add_half_2(packed, p, wide, scales, zeros, j, groups, rows, BLOCK, o, i, wide)
        else:
            _add_half_4(packed, p, wide, scales, zeros, j, groups, rows, BLOCK, o, i, wide)


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
        if bits == 4:
            for g in range(wide):
                _parted(asked[g], steps[0])
                _parted(o[task, g], steps[0])
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
        if bits == 4:
            for g in range(wide):
                _joined(o[task, g], steps[0])
    if last:
        finish(o, top, total, splits, out, lse)


attend_packed, attend_packed_parallel = both(_attend_packed)
