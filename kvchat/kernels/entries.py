"""`Entries`, the one shape of stored keys and values that attention takes."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """How entries in few bits are turned back into numbers: `code * scale + zero`.

    Keys have a scale for every 32 entries of a channel, `k_scale, k_zero [R/32, D]`, and a head's
    entries start at a multiple of 32; values have one for every group of channels, `v_scale, v_zero
    [R, D/g]`. All are 16-bit floats. A byte of 4- or 2-bit codes holds two or four neighbouring
    channels, the lowest one in its lowest bits.
    """

    bits: int
    k_scale: Tensor
    k_zero: Tensor
    v_scale: Tensor
    v_zero: Tensor


@dataclass(frozen=True)
class Entries:
    """Keys and values of one layer, ragged over KV heads; a view, never a copy.

    KV head h owns the entries `start[h] : start[h] + length[h]` of `k, v [R, D]`, which have the
    same distance from entry to entry, D or more; with a `packing`, of `[R, D * bits / 8]` uint8,
    contiguous. `spans` are the same numbers on the host, so that nobody waits for the device to
    learn them. With `bounds` they are but upper bounds: what counts is `length`, and what is beyond
    it is not to be read. `bias [R]` (fp32) is added to the scaled logit of its entry.
    """

    k: Tensor
    v: Tensor
    start: Tensor
    length: Tensor
    spans: tuple[tuple[int, int], ...]
    bias: Tensor | None = None
    packing: Packing | None = None
    bounds: bool = False
