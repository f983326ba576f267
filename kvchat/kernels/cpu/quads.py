"""Products of 4-bit matrices and a few vectors, for processors that sum four products of bytes at
once (AVX-512 VNNI, and VBMI, which puts bytes in any order), from torch's packing.

As `four_bits`, whose packing, scales and rounding these are; but codes are unpacked once for four
vectors, and nothing has to be widened: four inputs of a row are four bytes of one number.
"""

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from kvchat.kernels.cpu.four_bits import AHEAD, BYTES, FLOATS, GROUP, I8, I32, LANES, PREFETCH, ROWS
from kvchat.kernels.cpu.numbers import F32, LINE, both, jit

I64 = ir.IntType(64)
TOGETHER = 4  # vectors whose sums are alive at once
# bytes of rows 0 to 15, and 16 to 31, of four inputs: each row's four side by side
NEAR = [32 * n + row for row in range(16) for n in range(4)]
FAR = [place + 16 for place in NEAR]
MULTIPLY = "llvm.x86.avx512.vpdpbusd.512"  # sums of four unsigned by signed bytes, added to numbers


def able() -> bool:
    """Whether this processor has the instructions."""
    features = llvm.get_host_cpu_features()
    return all(features.get(name) for name in ("avx512bw", "avx512vbmi", "avx512vnni"))


def _constant(kind: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)


def adder(count: int) -> Any:
    """What adds 32 inputs of a block of 64 rows to the outputs of `count` vectors.

    `add(packed, place, x, first, each, scales, pair, steps, totals, number, groups, y, row, wide,
    soon)`: codes begin at byte `place`; a vector's inputs at byte `first`, the next one's `each`
    bytes on; scales at number `pair`, those at `soon` are wanted next; a vector's step and sum at
    `number`, the next one's `groups` on; outputs at `y[row : row + 64]`, the next one's `wide` on.
    """

    @intrinsic
    def add(
        context, packed, place, x, first, each, scales, pair, steps, totals, number, groups, y, row,
        wide, soon,
    ):  # fmt: skip
        def code(c, b, s, a):
            found = {n: c.make_array(s.args[n])(c, b, a[n]).data for n in (0, 2, 5, 7, 8, 11)}
            codes, given = (b.bitcast(found[n], I8.as_pointer()) for n in (0, 2))
            pairs, widths, sums, out = (found[n] for n in (5, 7, 8, 11))
            # LLVM takes bytes since some version, and makes of numbers what it takes
            kind = ir.FunctionType(LANES, [LANES] * 3)
            multiply = b.module.globals.get(MULTIPLY) or ir.Function(b.module, kind, MULTIPLY)
            kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
            fetch = b.module.globals.get(PREFETCH) or ir.Function(b.module, kind, PREFETCH)

            def load(base, offset, kind, align=1):
                return b.load(b.bitcast(b.gep(base, [offset]), kind.as_pointer()), align=align)

            def spread(value, kind):
                one = b.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
                return b.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, 16), [0] * 16))

            def ask(base, offset):
                where = b.bitcast(b.gep(base, [offset]), I8.as_pointer())
                b.call(fetch, [where, I32(0), I32(3), I32(1)])

            for line in range(0, 32 * GROUP, LINE):
                ask(codes, b.add(a[1], I64(32 * GROUP * AHEAD + line)))
            for line in range(0, ROWS, LINE // 4):
                ask(pairs, b.add(a[14], I64(line)))
            totals = [[_constant(LANES, 0)] * 4 for _ in range(count)]
            for four in range(GROUP // 4):
                start = b.add(a[1], I64(128 * four))
                one, other = load(codes, start, BYTES), load(codes, b.add(start, I64(64)), BYTES)
                quads = []
                for shift in (0, 4):
                    halves = [b.lshr(v, _constant(BYTES, shift)) if shift else v
                              for v in (one, other)]  # fmt: skip
                    halves = [b.and_(v, _constant(BYTES, 15)) for v in halves]
                    for places in (NEAR, FAR):
                        mask = ir.Constant(ir.VectorType(I32, 64), places)
                        quads.append(b.bitcast(b.shuffle_vector(*halves, mask), LANES))
                for n in range(count):
                    at = b.add(a[3], b.add(b.mul(a[4], I64(n)), I64(4 * four)))
                    own = spread(load(given, at, I32), LANES)
                    totals[n] = [b.call(multiply, [sum_, quad, own])
                                 for sum_, quad in zip(totals[n], quads, strict=True)]  # fmt: skip
            fast = ("fast",)
            for part in range(4):
                both_halves = load(pairs, b.add(a[6], I64(16 * part)), LANES, 4)
                scale = b.bitcast(b.shl(both_halves, _constant(LANES, 16)), FLOATS)
                zero = b.bitcast(b.and_(both_halves, _constant(LANES, 0xFFFF0000)), FLOATS)
                rest = b.fsub(zero, b.fmul(scale, _constant(FLOATS, 8.0), fast), fast)
                for n in range(count):
                    at = b.add(a[9], b.mul(a[10], I64(n)))
                    step, sum_ = (spread(b.load(b.gep(p, [at])), FLOATS) for p in (widths, sums))
                    value = b.fmul(b.sitofp(totals[n][part], FLOATS), step, fast)
                    value = b.fadd(b.fmul(value, scale, fast), b.fmul(rest, sum_, fast), fast)
                    at = b.add(a[12], b.add(b.mul(a[13], I64(n)), I64(16 * part)))
                    where = b.bitcast(b.gep(out, [at]), FLOATS.as_pointer())
                    b.store(b.fadd(b.load(where, align=4), value, fast), where, align=4)
            return c.get_dummy_value()

        long = types.int64
        given = packed, long, x, long, long, scales, long, steps, totals, long, long, y, long, long
        return types.void(*given, long), code

    return add


_add_1, _add_2, _add_3, _add_4 = map(adder, range(1, TOGETHER + 1))


@jit()
def rounded(x, codes, steps, totals):
    """`x [B, in]` in 8 bits, `codes [B, in]`: for every 32 of a row a step, and the sum of the
    rounded numbers, `steps, totals [B, in/32]`; see `four_bits.rounded`."""
    for b in range(len(x)):
        for group in range(x.shape[1] // GROUP):
            part, row = x[b, group * GROUP : (group + 1) * GROUP], codes[b, group * GROUP :]
            most = F32(0)
            for i in range(GROUP):
                most = max(most, abs(part[i]))
            step, total = most / F32(127), F32(0)
            back = F32(0) if most == F32(0) else F32(127) / most
            for i in range(GROUP):
                value = np.rint(part[i] * back)
                total += value
                row[i] = np.int8(value)
            steps[b, group], totals[b, group] = step, total * step


def _gemm_quads(packed, scales, codes, steps, totals, y, at):
    """`y [B, at : at + out] = x w^T` of the vectors that `rounded` has seen."""
    blocks, inputs, _ = packed.shape
    outputs, groups = blocks * ROWS, steps.shape[1]
    each, wide = groups // len(scales), y.shape[1]  # groups of 32 that share a scale
    for block in prange(blocks):
        row = block * ROWS
        for b in range(len(y)):
            for i in range(ROWS):
                y[b, at + row + i] = F32(0)
        for b in range(0, len(y), TOGETHER):
            count = min(TOGETHER, len(y) - b)
            for group in range(groups):
                place, first = (block * inputs + group * GROUP) * 32, b * inputs + group * GROUP
                pair, soon = group // each * outputs + row, (group + AHEAD) // each * outputs + row
                number, out = b * groups + group, b * wide + at + row
                if count == 4:
                    _add_4(
                        packed, place, codes, first, inputs, scales, pair, steps, totals, number,
                        groups, y, out, wide, soon,
                    )  # fmt: skip
                elif count == 3:
                    _add_3(
                        packed, place, codes, first, inputs, scales, pair, steps, totals, number,
                        groups, y, out, wide, soon,
                    )  # fmt: skip
                elif count == 2:
                    _add_2(
                        packed, place, codes, first, inputs, scales, pair, steps, totals, number,
                        groups, y, out, wide, soon,
                    )  # fmt: skip
                else:
                    _add_1(
                        packed, place, codes, first, inputs, scales, pair, steps, totals, number,
                        groups, y, out, wide, soon,
                    )  # fmt: skip


def room(count, inputs):
    """What `rounded` writes of so many vectors."""
    codes, groups = np.empty((count, inputs), np.int8), inputs // GROUP
    return codes, *np.empty((2, count, groups), np.float32)


product, product_parallel = both(_gemm_quads)
PAIRS = ((product, product_parallel),)
