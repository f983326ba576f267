"""Every block format against gguf's own arithmetic, on random blocks."""

import gguf
import numpy as np
import pytest
import torch

from kvchat.engine.gguf.blocks import BLOCKS, GROUPED
from kvchat.engine.gguf.quants import groups, numbers

# where the f16 of a block are: random bytes there would be NaN now and then
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82],
    "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0],
}  # fmt: skip
NUMBERS = {block.name: number for number, block in BLOCKS.items()}


def blocks_of(name, count=64):
    random, size = np.random.default_rng(0), BLOCKS[NUMBERS[name]].size
    raw = random.integers(0, 256, (count, size), dtype=np.uint8)
    for at in HALVES[name]:
        half = random.normal(0, 0.1, (count, 1)).astype(np.float16)
        raw[:, at : at + 2] = half.view(np.uint8)
    return raw


@pytest.mark.parametrize("name", HALVES)
def test_numbers_of_a_block(name):
    raw = blocks_of(name)
    want = gguf.dequantize(raw, gguf.GGMLQuantizationType(NUMBERS[name]))
    got = numbers(name, torch.from_numpy(raw))
    assert got.shape == (64, BLOCKS[NUMBERS[name]].values)
    np.testing.assert_array_equal(got.numpy(), want.reshape(got.shape))


@pytest.mark.parametrize("name", GROUPED)
def test_groups_are_the_same_numbers(name):
    raw = torch.from_numpy(blocks_of(name))
    codes, scale, low = groups(name, raw)
    assert int(codes.max()) <= 15 and codes.shape[1] == 32 * scale.shape[1]
    found = codes.view(64, -1, 32) * scale[..., None] + low[..., None]
    torch.testing.assert_close(found.view(64, -1), numbers(name, raw), rtol=1e-6, atol=1e-6)


def test_sizes_are_those_of_gguf():
    for number, block in BLOCKS.items():
        sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)]
        assert sizes == (block.values, block.size), block
