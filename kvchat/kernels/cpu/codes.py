"""Codes of 8, 4 or 2 bits as vectors of numbers, for compiled functions.

A byte's codes stand the lowest first. Those that are first in their bytes become one vector, those
that are second the next one: so nothing has to be put between anything.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

GROUP = 32  # entries of a key channel that share a scale
LANES = 16  # bytes of keys that are taken at once
I8, I64, F = ir.IntType(8), ir.IntType(64), ir.FloatType()


def _vector(kind: ir.Type, lanes: int, value: float) -> ir.Constant:
    return ir.Constant(ir.VectorType(kind, lanes), [value] * lanes)


def _loaded(b, base, place, lanes):
    """So many bytes of an array, from a byte on."""
    start = b.gep(b.bitcast(base, I8.as_pointer()), [place])
    return b.load(b.bitcast(start, ir.VectorType(I8, lanes).as_pointer()), align=1)


def _apart(b, codes, bits):
    """The codes that stand first in bytes, those that stand second, and so on."""
    lanes, mask = codes.type.count, 2**bits - 1
    shifted = [b.lshr(codes, _vector(I8, lanes, bits * j)) for j in range(8 // bits)]
    return [b.and_(part, _vector(I8, lanes, mask)) for part in shifted]


def unpacker(bits: int):
    """What makes a byte of every code of 16 bytes.

    `unpack(packed, place, room, to, step)`: bytes from `place` on of packed codes; those that stand
    first go to byte `to` of `room`, the others each `step` bytes on.
    """

    @intrinsic
    def unpack(context, packed, place, room, to, step):
        def code(c, b, s, a):
            given, out = (c.make_array(s.args[n])(c, b, a[n]).data for n in (0, 2))
            for j, part in enumerate(_apart(b, _loaded(b, given, a[1], LANES), bits)):
                at = b.add(a[3], b.mul(a[4], I64(j)))
                b.store(part, b.bitcast(b.gep(out, [at]), part.type.as_pointer()), align=1)
            return c.get_dummy_value()

        return types.void(packed, types.int64, room, types.int64, types.int64), code

    return unpack


def adder(queries: int, bits: int):
    """What adds 32 entries' values of 32 channels with one scale to sums.

    `add(codes, place, step, scales, zeros, first, each, rows, ahead, o, at, apart)`: codes begin at
    byte `place`, those of the next entry `step` bytes on; the scale of the first is number `first`,
    that of the next one `each` on; weights are `rows`, those of the next query `ahead` on. Sums of
    the first vector of codes begin at number `at` of `o [queries, D]`, of the others `apart` on.
    """
    lanes = LANES if bits >= 4 else 4 * bits
    loads = 4 * bits // lanes  # 32 codes are 4 * bits bytes
    floats = ir.VectorType(F, lanes)

    @intrinsic
    def add(context, codes, place, step, scales, zeros, first, each, rows, ahead, o, at, apart):
        def code(c, b, s, a):
            arrays = {n: c.make_array(s.args[n])(c, b, a[n]) for n in (0, 3, 4, 7, 9)}
            given, steps, least, weights, sums = (arrays[n].data for n in (0, 3, 4, 7, 9))
            across = b.udiv(b.extract_value(arrays[9].strides, 0), I64(4))
            places = [(g, which) for g in range(queries) for which in range(32 // lanes)]
            fast = ("fast",)

            def spread(base, number):
                value = b.load(b.gep(base, [number]))
                one = b.insert_element(ir.Constant(floats, ir.Undefined), value, I64(0))
                mask = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
                return b.shuffle_vector(one, one, mask)

            found = {place: cgutils.alloca_once(b, floats) for place in places}
            for total in found.values():
                b.store(_vector(F, lanes, 0.0), total)
            with cgutils.for_range(b, I64(GROUP)) as loop:
                at = b.add(a[1], b.mul(a[2], loop.index))
                parts = [
                    part
                    for load in range(loads)
                    for part in _apart(
                        b, _loaded(b, given, b.add(at, I64(load * lanes)), lanes), bits
                    )
                ]
                number = b.add(a[5], b.mul(a[6], loop.index))
                scale, zero = spread(steps, number), spread(least, number)
                values = [
                    b.fadd(b.fmul(b.uitofp(part, floats), scale, fast), zero, fast)
                    for part in parts
                ]
                for (g, which), total in found.items():
                    weight = spread(weights, b.add(b.mul(a[8], I64(g)), loop.index))
                    product = b.fmul(weight, values[which], fast)
                    b.store(b.fadd(b.load(total), product, fast), total)
            for (g, which), total in found.items():
                number = b.add(a[10], b.mul(across, I64(g)))
                number = b.add(number, b.mul(a[11], I64(which)))
                start = b.bitcast(b.gep(sums, [number]), floats.as_pointer())
                b.store(b.fadd(b.load(start, align=4), b.load(total), fast), start, align=4)
            return c.get_dummy_value()

        n = types.int64
        return types.void(codes, n, n, scales, zeros, n, n, rows, n, o, n, n), code

    return add
