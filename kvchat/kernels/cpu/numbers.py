"""Numbers as compiled functions read and write them, and how functions are compiled.

bf16 is seen as uint16 and f16 as int16, for numpy has no bf16 and numba no f16.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile
from types import FunctionType
from typing import Any

import numba
import numpy as np
import platformdirs
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.extending import intrinsic, overload
from torch import Tensor

from kvchat.files import private_folder

LOG = logging.getLogger("kvchat.engine")
F32 = np.float32
LINE = 64  # bytes of a cache line
SIXTEEN = np.uint32(16)
ROUND, ONE = np.uint32(0x7FFF), np.uint32(1)
LOG2, LN2 = F32(1.4426950408889634), F32(0.6931471805599453)
LOWEST = F32(-87.0)  # e^x below it is no normal number
HIGHEST = F32(88.0)  # e^x above it is none either; who may ask for more has to bound it
# a float's bits, ordered as a signed integer: those of negative ones are turned round
SIGN, POSITIVE, LEAST = np.int32(31), np.int32(0x7FFFFFFF), np.int32(-0x7FFFFFFF)
SEEN_AS = {torch.bfloat16: np.uint16, torch.float16: np.int16}
OPTIONS = {"fastmath": True, "nogil": True, "boundscheck": False, "error_model": "numpy"}


@cache
def kept() -> str | None:
    """The folder for machine code: beside the sources, else the user's cache; None: neither can be
    written.

    It belongs to these very sources: numba itself looks at the file of a function only, not at
    those of the functions that are compiled into it.
    """
    here = Path(__file__).parent
    digest = sha256(b"".join(file.read_bytes() for file in sorted(here.glob("*.py")))).hexdigest()
    for parent in (here / "__pycache__", platformdirs.user_cache_path("kvchat") / "compiled"):
        folder = parent / f"numba-{digest[:16]}"
        try:
            with TemporaryFile(dir=private_folder(folder)):
                return str(folder)
        except OSError:
            continue
    return None


class Kept(FunctionCache):  # type: ignore[misc]
    """The machine code of a function in a folder; compiled anew where it cannot be read."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What was compiled for these types of arguments, or None."""
        try:
            found = super().load_overload(sig, target_context)
            # two processes that write at once can exchange their files
            if found is None or tuple(found.signature.args) == tuple(sig):
                return found
        except Exception:  # cut off by a full disk or a crash: unpickling raises anything
            LOG.info("machine code of %s is damaged", self._name)
        with suppress(OSError):
            self.flush()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled, if the folder takes it."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            LOG.info("machine code of %s is not kept: %s", self._name, error)


def jit(parallel: bool = False) -> Callable[[Any], Any]:
    """Compile a function at its first call, and keep the machine code for the next process.

    Where nothing can be written it is compiled anew every time.
    """

    def compiled(function: Any) -> Any:
        before, folder = numba.config.CACHE_DIR, kept()
        numba.config.CACHE_DIR = folder or before
        try:
            made = numba.njit(parallel=parallel, **OPTIONS)(function)
            if folder is not None:
                made._cache = Kept(function)
            return made
        finally:
            numba.config.CACHE_DIR = before

    return compiled


def both(function: Any) -> tuple[Any, Any]:
    """A function compiled for one thread and, `prange` shared out, for all of numba's."""
    twin = FunctionType(function.__code__, function.__globals__, f"{function.__name__}_parallel")
    twin.__module__, twin.__qualname__ = function.__module__, twin.__name__  # a cache of its own
    return jit()(function), jit(parallel=True)(twin)


def view(tensor: Tensor) -> np.ndarray:
    """A tensor's memory as numpy array; 16-bit floats as described above."""
    plain = tensor.detach()
    seen = SEEN_AS.get(plain.dtype)
    return plain.numpy() if seen is None else plain.view(torch.int16).numpy().view(seen)


@intrinsic
def _as_float(context, bits):
    return types.float32(types.uint32), lambda c, b, s, a: b.bitcast(a[0], ir.FloatType())


@intrinsic
def _as_bits(context, value):
    return types.uint32(types.float32), lambda c, b, s, a: b.bitcast(a[0], ir.IntType(32))


@intrinsic
def _half_up(context, bits):
    def code(c, b, s, a):
        return b.fpext(b.bitcast(a[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.int16), code


@intrinsic
def _half_down(context, value):
    def code(c, b, s, a):
        return b.bitcast(b.fptrunc(a[0], ir.HalfType()), ir.IntType(16))

    return types.int16(types.float32), code


def up(value: Any) -> Any:
    """A stored number as float32."""


def down(value: Any, like: Any) -> Any:
    """A float32 as it is stored beside `like`, rounded to nearest even."""


@overload(up, inline="always")
def _up(value):
    if value == types.uint16:
        return lambda value: _as_float(np.uint32(value) << SIXTEEN)
    if value == types.int16:
        return lambda value: _half_up(value)
    return lambda value: np.float32(value)


@overload(down, inline="always")
def _down(value, like):
    if like == types.uint16:

        def bf16(value, like):
            bits = _as_bits(value)
            return np.uint16((bits + ROUND + ((bits >> SIXTEEN) & ONE)) >> SIXTEEN)

        return bf16
    if like == types.int16:
        return lambda value, like: _half_down(value)
    return lambda value, like: value


@numba.njit(inline="always", **OPTIONS)
def exp(x):
    """e^x within 2e-7 of it for x up to `HIGHEST`, without a call, so that loops become vectors."""
    y = max(x, LOWEST) * LOG2
    n = np.floor(y + F32(0.5))  # to the nearest, so that r is small
    r = (y - n) * LN2
    p = F32(1 / 24) + r * (F32(1 / 120) + r * F32(1 / 720))
    p = F32(1) + r * (F32(1) + r * (F32(0.5) + r * (F32(1 / 6) + r * p)))
    return _as_float(np.uint32((np.int32(n) + np.int32(127)) << np.int32(23))) * p


@numba.njit(inline="always", **OPTIONS)
def tanh(x):
    """tanh(x) by `exp`; near 0, where that loses digits, by its series."""
    e = exp(F32(2) * min(x, F32(20)))
    s = x * x
    series = F32(-17 / 315) + s * (F32(62 / 2835) - s * F32(1382 / 155925))
    series = x + x * s * (F32(-1 / 3) + s * (F32(2 / 15) + s * series))
    return series if abs(x) < F32(0.4) else (e - F32(1)) / (e + F32(1))


@numba.njit(inline="always", **OPTIONS)
def ordered(x):
    """A float's bits as a signed integer that is the larger the larger the float is."""
    bits = np.int32(_as_bits(x))
    return bits ^ ((bits >> SIGN) & POSITIVE)


@numba.njit(inline="always", **OPTIONS)
def unordered(key):
    """The float of a key that `ordered` gave."""
    return _as_float(np.uint32(key ^ ((key >> SIGN) & POSITIVE)))


@numba.njit(inline="always", **OPTIONS)
def largest(x, count):
    """The largest of the first `count` values; as integers, for of these LLVM makes vectors."""
    best = LEAST
    for n in range(count):
        best = max(best, ordered(x[n]))
    return unordered(best)


@intrinsic
def fetch(context, rows, number, byte):
    """Ask for the cache line at a byte of a row `number` that is wanted soon; it may not exist."""

    def code(c, b, s, a):
        array = c.make_array(s.args[0])(c, b, a[0])
        step = b.extract_value(array.strides, 0)
        place = b.add(b.mul(a[1], step), a[2])
        start = b.bitcast(array.data, ir.IntType(8).as_pointer())
        pointer = b.gep(start, [place])
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), flag, flag, flag])
        call = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0i8")
        b.call(call, [pointer, flag(0), flag(3), flag(1)])
        return c.get_dummy_value()

    return types.void(rows, types.int64, types.int64), code
