"""Products of 4-bit matrices and a few vectors, for processors with AVX-512, from torch's packing.

`packed [out/64, in, 32]` uint8: byte j of an input has row j of the block in its low half, row
j + 32 in its high one. `scales [in/g, out]` are pairs of bf16, scale and zero, seen as uint32:
`w = (code - 8) * scale + zero`. A vector is rounded to 8 bits by groups of 32, as llama.cpp does,
so that codes and it are multiplied as integers: two products and their sum in one instruction.
"""

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from kvchat.kernels.cpu.numbers import F32, LINE, both, jit

ROWS, GROUP = 64, 32
I8, I16, I32, F = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
BYTES, WORDS = ir.VectorType(I8, 64), ir.VectorType(I16, 32)
LANES, FLOATS = ir.VectorType(I32, 16), ir.VectorType(F, 16)
AHEAD = 4  # groups that are asked for before they are wanted
PREFETCH = "llvm.prefetch.p0i8"
MULTIPLY = "llvm.x86.avx512.pmaddubs.w.512"  # unsigned by signed bytes, neighbours summed


def able() -> bool:
    """Whether this processor has the instruction."""
    return bool(llvm.get_host_cpu_features().get("avx512bw"))


def _constant(kind: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)


def _picked(builder, one, other, places):
    """Lanes of two vectors by number, those of the second after those of the first."""
    mask = ir.Constant(ir.VectorType(I32, len(places)), places)
    return builder.shuffle_vector(one, other, mask)


# neighbours of two vectors side by side, in every 16 bytes: their lower halves, their upper halves
LOWER = [64 * which + 16 * lane + n for lane in range(4) for n in range(8) for which in (0, 1)]
UPPER = [place + 8 for place in LOWER]


@intrinsic
def _add_group(context, packed, place, patterns, first, scales, pair, xs, total, y, row, soon):
    """Add 32 inputs of a block of 64 rows to `y[row : row + 64]`.

    Codes begin at byte `place`, the inputs' patterns at byte `first`, scales at number `pair`;
    those at `soon` are wanted next.
    """

    def code(c, b, s, a):
        arrays = {n: c.make_array(s.args[n])(c, b, a[n]).data for n in (0, 2, 4, 8)}
        codes, given, pairs, out = (arrays[n] for n in (0, 2, 4, 8))
        function = ir.FunctionType(WORDS, [BYTES, BYTES])
        multiply = b.module.globals.get(MULTIPLY) or ir.Function(b.module, function, MULTIPLY)

        def at(number):
            return ir.Constant(ir.IntType(64), number)

        def load(base, offset, kind, align=1):
            where = b.bitcast(b.gep(base, [offset]), kind.as_pointer())
            return b.load(where, align=align)

        codes, given = (b.bitcast(p, I8.as_pointer()) for p in (codes, given))
        kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
        prefetch = b.module.globals.get(PREFETCH) or ir.Function(b.module, kind, PREFETCH)
        for line in range(0, 32 * GROUP, LINE):
            soon = b.gep(codes, [b.add(a[1], at(32 * GROUP * AHEAD + line))])
            b.call(prefetch, [soon, I32(0), I32(3), I32(1)])
        for line in range(0, ROWS, LINE // 4):
            soon = b.bitcast(b.gep(pairs, [b.add(a[10], at(line))]), I8.as_pointer())
            b.call(prefetch, [soon, I32(0), I32(3), I32(1)])
        sums = [_constant(WORDS, 0)] * 4
        for four in range(GROUP // 4):
            # inputs 4n and 4n + 1, then 4n + 2 and 4n + 3
            start = b.add(a[1], at(128 * four))
            pair_a, pair_b = load(codes, start, BYTES), load(codes, b.add(start, at(64)), BYTES)
            x = load(given, b.add(a[3], at(64 * four)), BYTES)
            for half in range(2):
                if half == 0:
                    low = [b.and_(v, _constant(BYTES, 15)) for v in (pair_a, pair_b)]
                else:
                    low = [b.lshr(v, _constant(BYTES, 4)) for v in (pair_a, pair_b)]
                for which, places in enumerate((LOWER, UPPER)):
                    mixed = _picked(b, low[0], low[1], places)
                    slot = 2 * half + which
                    sums[slot] = b.add(sums[slot], b.call(multiply, [mixed, x]))

        def spread(value):
            one = b.insert_element(ir.Constant(FLOATS, ir.Undefined), value, I32(0))
            return b.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, 16), [0] * 16))

        scale_x, sum_x = spread(a[6]), spread(a[7])
        for half in range(2):
            folded = []
            for which in range(2):
                words = sums[2 * half + which]
                parts = [_picked(b, words, words, list(range(n, n + 16))) for n in (0, 16)]
                wide = [b.sext(part, LANES) for part in parts]
                folded.append(b.add(*wide))
            for part in range(2):
                places = [8 * part + n for n in range(8)] + [16 + 8 * part + n for n in range(8)]
                number = b.sitofp(_picked(b, folded[0], folded[1], places), FLOATS)
                offset = 32 * half + 16 * part
                both_halves = load(pairs, b.add(a[5], at(offset)), LANES, 4)
                scale = b.bitcast(b.shl(both_halves, _constant(LANES, 16)), FLOATS)
                zero = b.bitcast(b.and_(both_halves, _constant(LANES, 0xFFFF0000)), FLOATS)
                fast = ("fast",)
                found = b.fmul(number, b.fmul(scale, scale_x, fast), fast)
                rest = b.fsub(zero, b.fmul(scale, _constant(FLOATS, 8.0), fast), fast)
                found = b.fadd(found, b.fmul(rest, sum_x, fast), fast)
                where = b.gep(out, [b.add(a[9], at(offset))])
                where = b.bitcast(where, FLOATS.as_pointer())
                b.store(b.fadd(b.load(where, align=4), found, fast), where, align=4)
        return c.get_dummy_value()

    given = packed, types.int64, patterns, types.int64, scales, types.int64
    numbers = types.float32, types.float32, y, types.int64, types.int64
    return types.void(*given, *numbers), code


@jit()
def rounded(x, patterns, steps, totals):
    """`x [B, in]` in 8 bits: for every 32 of a row a step, and the sum of the rounded numbers.

    The sum is of what is multiplied, or the zeros of weights would not fit their codes.
    `patterns [B, in/4, 64]` int8 hold, of every four, the first and third 16 times, then the second
    and fourth: beside codes as they are multiplied. `steps, totals [B, in/32]`.
    """
    for b in range(len(x)):
        for group in range(x.shape[1] // GROUP):
            part = x[b, group * GROUP : (group + 1) * GROUP]
            most = F32(0)
            for i in range(GROUP):
                most = max(most, abs(part[i]))
            step, total = most / F32(127), F32(0)
            back = F32(0) if most == F32(0) else F32(127) / most
            for four in range(GROUP // 4):
                row = patterns[b, group * (GROUP // 4) + four]
                p, q = np.rint(part[4 * four] * back), np.rint(part[4 * four + 1] * back)
                r, s = np.rint(part[4 * four + 2] * back), np.rint(part[4 * four + 3] * back)
                total += p + q + r + s
                first, second, third, fourth = np.int8(p), np.int8(q), np.int8(r), np.int8(s)
                for i in range(0, 32, 2):
                    row[i], row[i + 1], row[32 + i], row[33 + i] = first, third, second, fourth
            steps[b, group], totals[b, group] = step, total * step


def _gemm_four(packed, scales, patterns, steps, totals, y, at):
    """`y [B, at : at + out] = x w^T` of the vectors that `rounded` has seen.

    A block of rows stays in the processor's cache while one vector after the other meets it.
    """
    blocks, inputs, _ = packed.shape
    outputs, groups = blocks * ROWS, steps.shape[1]
    each = groups // len(scales)  # groups of 32 that share a scale
    for block in prange(blocks):
        row = block * ROWS
        for b in range(len(y)):
            out, first = b * y.shape[1] + at + row, b * inputs * 16
            for i in range(ROWS):
                y[b, at + row + i] = F32(0)
            for group in range(groups):
                _add_group(
                    packed, (block * inputs + group * GROUP) * 32,
                    patterns, first + group * GROUP * 16,
                    scales, group // each * outputs + row, steps[b, group], totals[b, group],
                    y, out, (group + AHEAD) // each * outputs + row,
                )  # fmt: skip


def room(count, inputs):
    """What `rounded` writes of so many vectors."""
    patterns, groups = np.empty((count, inputs // 4, 64), np.int8), inputs // GROUP
    return patterns, *np.empty((2, count, groups), np.float32)


product, product_parallel = both(_gemm_four)
PAIRS = ((product, product_parallel),)
