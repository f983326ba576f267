"""Kernels on a CPU: Triton's interpreter, with bfloat16 as a card has it.

The interpreter keeps a bfloat16 as the 16 bits that it is, multiplies those in products, and cuts
bits off where a card rounds to nearest even. Imported before any kernel runs.
"""

import numpy as np
from triton import language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_cast, _dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot


def _wide(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _narrow(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values).view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, nearest).astype(np.uint16)


def _cast_half(builder, src, dst_type):
    kinds = src.dtype.scalar, dst_type.scalar
    if kinds == (tl.bfloat16, tl.float32):
        return TensorHandle(_wide(src.data), tl.float32)
    if kinds == (tl.float32, tl.bfloat16):
        return TensorHandle(_narrow(src.data), tl.bfloat16)
    return _cast(builder, src, dst_type)


def _dot_half(builder, a, b, *rest):
    a, b = (
        TensorHandle(_wide(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x
        for x in (a, b)
    )
    return _dot(builder, a, b, *rest)


InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot = _cast_half, _dot_half
