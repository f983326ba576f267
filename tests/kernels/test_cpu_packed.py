"""Attention over entries in 8, 4 and 2 bits on a CPU, against the same turned into numbers."""

import numpy as np
import pytest
import torch

from kvchat.engine.cache.quantized import QuantizedSegment
from kvchat.engine.cache.segment import FlatSegment
from kvchat.kernels import reference
from kvchat.kernels.cpu import attention, packed
from kvchat.kernels.cpu.numbers import view
from tests.kernels.test_cpu import made
from tests.support.closeness import assert_close

NONE = np.empty(0, np.float32)


class Room:
    """What the kernel needs beside, full of NaN."""

    def __init__(self, heads, group, dim, splits):
        tasks, wide = heads * splits, attention.padded(group)

        def nan(*shape):
            return np.full(shape, np.nan, np.float32)

        self.width, self.splits = attention.together(group), splits
        self.state = nan(tasks, wide, dim), nan(tasks, wide), nan(tasks, wide)
        self.rest = nan(tasks, wide, dim), nan(tasks, wide, attention.BLOCK)
        self.packed = (
            np.empty((tasks, 32, dim), np.uint8), nan(tasks, 7, dim), nan(tasks, 2, 32 * dim)
        )  # fmt: skip
        self.out, self.lse = torch.empty(heads * group, dim), torch.empty(heads * group)

    def attend(self, q, part, scale, cap=0.0, fresh=True, last=True):
        """Over packed entries or plain ones, by one thread or several."""
        start, length = (np.array(each, np.int64) for each in zip(*part.spans, strict=True))
        store, more, p = (view(part.k), view(part.v)), (), part.packing
        kernels = attention.attend, attention.attend_parallel
        if p is not None:
            scales = (view(each) for each in (p.k_scale, p.k_zero, p.v_scale, p.v_zero))
            store, more = (*store, *scales, p.bits), self.packed
            kernels = packed.attend_packed, packed.attend_packed_parallel
        kernels[self.splits > 1](
            q.numpy(), *store, start, length, NONE if part.bias is None else view(part.bias),
            np.float32(scale), np.float32(cap), self.width, self.splits, fresh, last, *self.state,
            *self.rest, *more, self.out.numpy(), self.lse.numpy(),
        )  # fmt: skip


def segment(lengths, dim, bits, bias=False, dtype=torch.bfloat16):
    k, v = (made(sum(lengths), dim, dtype=dtype, seed=seed) for seed in (1, 2))
    position = torch.arange(len(k))
    flat = FlatSegment.of(
        k, v, lengths, position, (0, len(k)), bias=made(len(k), seed=3) if bias else None
    )
    return QuantizedSegment.of(flat, bits)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("dim", [2, 16, 32, 40, 64, 80, 96, 128, 256])
def test_sizes_of_heads(bits, dim):
    if dim * bits % 8:
        pytest.skip("no whole bytes")
    found, room = segment([70, 31, 33], dim, bits), Room(3, 2, dim, 1)
    q = made(6, dim)
    room.attend(q, found.parts[0], dim**-0.5)
    o, lse = reference.ragged_attention(q[None], found.parts[:1], dim**-0.5)
    assert_close("o", room.out, o[0], 1e-5)
    assert torch.equal(torch.isneginf(room.lse), torch.isneginf(lse[0]))
    assert_close("lse", room.lse[[0, 1, 4, 5]], lse[0][[0, 1, 4, 5]], 1e-5)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("splits, bias", [(1, False), (1, True), (3, False)])
def test_packed_entries_and_the_others_of_ragged_heads(bits, group, splits, bias):
    """Both parts of a segment one after the other, over more than one block; an empty head."""
    found = segment([1100, 0, 5, 64, 2080], 64, bits, bias)
    room, q = Room(5, group, 64, splits), made(5 * group, 64)
    body, rest = found.parts
    room.attend(q, body, 0.2, last=False)
    room.attend(q, rest, 0.2, fresh=False)
    o, lse = reference.ragged_attention(q[None], found.parts, 0.2)
    assert_close("o", room.out, o[0], 1e-5)
    seen = torch.isfinite(lse[0])
    assert torch.equal(seen, torch.isfinite(room.lse)) and 0 < int(seen.sum()) < len(seen)
    assert_close("lse", room.lse[seen], lse[0][seen], 1e-5)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_logits_are_capped(bits):
    found, room, q = segment([96], 32, bits), Room(1, 2, 32, 1), 9 * made(2, 32)
    (part,) = found.parts[:1]
    room.attend(q, part, 0.5, cap=3.0)
    plain = reference.unpacked(part, torch.float32)
    o, lse = reference.dense_attention(
        q[None], plain.k[None], plain.v[None], 0.5, causal=False, cap=3.0
    )
    assert_close("o", room.out, o[0], 1e-5)
    assert_close("lse", room.lse, lse[0], 1e-5)
