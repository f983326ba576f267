"""Entries in few bits: KIVI's hand-worked oracle (arXiv 2402.02750), the error bound, exact bytes,
and attention against the entries turned back into numbers.
"""

from dataclasses import replace

import pytest
import torch

from kvchat.engine.budget import Budget, Geometry
from kvchat.engine.cache import quantized
from kvchat.engine.cache.quantized import QuantizedSegment
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method, with_budget
from kvchat.engine.methods.specs import method_options, name_of
from kvchat.kernels import reference
from kvchat.kernels.reference import dense_attention
from tests.engine.scenes import EVICTING, KEEPING, compressed, paired, random_scene
from tests.engine.tiny import load_engine, random_ids, read, torch_backend
from tests.support.closeness import assert_attention, assert_close


def test_kivi_in_two_bits():
    """(0, 1, 2, 5): zero 0, scale 5/3, codes 0 1 1 3, back to 0 1.6667 1.6667 5, low byte 212."""
    codes, scale, zero = reference.quantize(torch.tensor([0.0, 1, 2, 5]), 2, torch.float32)
    assert (codes.tolist(), float(zero)) == ([0, 1, 1, 3], 0)
    assert float(scale) == pytest.approx(5 / 3)
    back = reference.dequantize(codes, scale, zero, torch.float32)
    assert_close("back", back, torch.tensor([0, 5 / 3, 5 / 3, 5]), 1e-6)
    assert reference.pack(codes, 2).tolist() == [212]
    constant = torch.full((3, 8), 0.375)
    assert torch.equal(
        reference.dequantize(*reference.quantize(constant, 4, torch.float16), torch.float32),
        constant,
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_survive_packing_and_errors_are_half_a_step(bits):
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(50, 3, 32, generator=generator) * torch.rand(50, 3, 1, generator=generator) * 9
    for meta in (torch.float32, torch.float16):
        codes, scale, zero = reference.quantize(x, bits, meta)
        packed = reference.pack(codes, bits)
        assert packed.shape == (50, 3, 32 * bits // 8)
        assert torch.equal(reference.unpack(packed, bits), codes)
        error = (reference.dequantize(codes, scale, zero, torch.float32) - x).abs()
        # rounding to 16 bits shortens the range by at most 2^-11 of it, at its end
        preallocated = (2**bits - 1) * 2**-11 if meta == torch.float16 else 1e-5
        assert bool(
            (error <= scale.float()[..., None] * (0.5 + preallocated) + 2e-3 * preallocated).all()
        )


def flat(lengths, dim, seed=0, bias=False, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    entries = sum(lengths)
    k, v = (torch.randn(entries, dim, generator=generator).to(dtype) for _ in range(2))
    weights = torch.rand(entries, generator=generator) if bias else None
    position = torch.cat([torch.arange(n) for n in lengths])
    count = torch.ones(entries, dtype=torch.int32) if bias else None
    return FlatSegment.of(k, v, lengths, position, (0, 500), weights, count)


def numbers(segment: QuantizedSegment) -> list[tuple[torch.Tensor, ...]]:
    """Keys, values and biases of each head, turned back, in the order of the store."""
    entries, rest = segment.ends[-1], segment.rest
    k, v = segment._keys(0, entries), segment._values(0, entries)
    heads = []
    for h in range(len(segment.ends) - 1):
        own, more = slice(*segment.ends[h : h + 2]), slice(*rest.ends[h : h + 2])
        bias = None
        if rest.bias is not None:
            body = torch.zeros(own.stop - own.start) if segment.bias is None else segment.bias[own]
            bias = torch.cat((body, rest.bias[more]))
        heads.append((torch.cat((k[own], rest.k[more])), torch.cat((v[own], rest.v[more])), bias))
    return heads


@pytest.mark.parametrize(
    "dim, lengths, bits",
    [
        (16, [64, 70, 32, 5], 4),
        (80, [64, 70, 32, 5], 8),
        (80, [200, 0, 31, 33], 4),
        (128, [200, 0, 31, 33], 8),
        (16, [3], 8),
        (128, [1000, 100], 4),
        (80, [200, 0, 31, 33], 2),
        (64, [1000, 100], 2),
    ],
)
def test_attention_is_that_of_the_entries_turned_back(monkeypatch, bits, lengths, dim):
    """Slices that begin and end inside heads, heads without entries, and a bias per entry."""
    monkeypatch.setattr(quantized, "SLICE", 96)
    for bias in (False, True):
        source = flat(lengths, dim, bias=bias)
        segment = QuantizedSegment.of(source, bits)
        assert segment.lengths == source.lengths and segment.bits == bits
        q = torch.randn(3, 2 * len(lengths), dim, generator=torch.Generator().manual_seed(1))
        o, lse = segment.attend(q, dim**-0.5, torch_backend())
        for head, (k, v, weights) in enumerate(numbers(segment)):
            if len(k) == 0:
                assert bool((lse[:, 2 * head : 2 * head + 2] == float("-inf")).all())
                continue
            pair = slice(2 * head, 2 * head + 2)
            given = None if weights is None else weights[None]
            want = dense_attention(
                q[:, pair], k[None], v[None], dim**-0.5, causal=False, bias=given
            )
            assert_attention((o[:, pair], lse[:, pair]), want)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_entries_come_back_within_half_a_step_of_their_group(bits):
    source = flat([96, 40], 64)
    segment, levels = QuantizedSegment.of(source, bits), 2**bits - 1
    for head, (k, v, _) in enumerate(numbers(segment)):
        own = slice(*source.ends[head : head + 2])
        body = len(k) - len(k) % 32
        keys, values = source.k[own][:body], source.v[own][:body]
        for got, want, groups in (
            (k[:body], keys, (-1, 32, 64)),
            (v[:body].mT, values.mT, (2, 32, body)),
        ):
            want = want.reshape(groups)  # per channel 32 entries, per entry 32 channels
            step = (want.amax(1) - want.amin(1)) / levels
            error = (got.reshape(groups) - want).abs()
            assert bool((error <= 0.5 * step[:, None] + 0.004).all())
        assert torch.equal(k[body:], source.k[own][body:]), "the rest is as it was"


def test_bytes_per_entry():
    """D 128 in 16 bits: 2 bits cost 96 bytes, 4 bits 160, 8 bits 288, of 512; and a position."""
    for bits, want in ((2, 96), (4, 160), (8, 288), (16, 512)):
        geometry = Geometry(tokens=1, heads=1, layers=1, dim=128, itemsize=2, bits=bits)
        assert geometry.entry_bytes == want + 4
    source = flat([3200, 640], 128, dtype=torch.bfloat16)
    assert QuantizedSegment.of(source, 4).memory().total == 3840 * 164 + 2 * 12


def test_tensors_are_everything_and_load_is_the_inverse():
    segment = QuantizedSegment.of(flat([70, 33], 32, bias=True), 4)
    again = QuantizedSegment.load(segment.tensors(), segment.span)
    assert again.tensors().keys() == segment.tensors().keys()
    assert all(torch.equal(t, segment.tensors()[n]) for n, t in again.tensors().items())
    assert (again.lengths, again.span, again.bits) == (segment.lengths, segment.span, 4)
    assert again.memory() == segment.memory()


def test_the_newest_entries_stay_whole():
    """Of heads of 200, 0, 31 and 70 entries 40 stay, and what makes no group of 32 with others."""
    source = flat([200, 0, 31, 70], 16)
    segment = QuantizedSegment.of(source, 2, residual=40)
    assert segment.lengths == source.lengths
    assert [b - a for a, b in zip(segment.ends, segment.ends[1:], strict=False)] == [160, 0, 0, 0]
    assert segment.rest.lengths == (40, 0, 31, 70)
    for head in range(4):
        own, rest = slice(*source.ends[head : head + 2]), slice(*segment.rest.ends[head : head + 2])
        count = segment.rest.lengths[head]
        assert torch.equal(segment.rest.k[rest], source.k[own][len(source.k[own]) - count :])
    geometry = Geometry(tokens=301, heads=4, layers=1, dim=16, itemsize=4, bits=2, residual=40)
    used = segment.memory().total + 2 * 4 * 4  # starts and lengths of the tail's heads
    assert used <= geometry.layer_bytes + 301 * geometry.entry_bytes


@pytest.mark.parametrize("name, bits", paired(KEEPING, [8, 4, 2]))
def test_every_flat_method_takes_bits(checkpoint, name, bits):
    """The same entries in fewer bytes; logits are those of the entries turned back."""
    engine, ids = load_engine(checkpoint(head_dim=32)), random_ids(300, seed=8)
    method = parse_method(name, Budget(fraction=0.5), [f"bits={bits}"])
    assert name_of(method) == name.partition(":")[0] and method_options(method)["bits"] == bits
    few, _ = read(engine, ids[:290], method)
    plain, _ = read(engine, ids[:290], parse_method(name, Budget(fraction=0.5)))
    twin, _ = read(engine, ids[:290], parse_method(name, Budget(fraction=0.5)))
    for small, layer in zip(few.segments(), twin.layers, strict=True):
        (flat,) = layer.segments
        assert small.lengths == flat.lengths
        assert small.kind == "quantized" and small.memory().total < 0.7 * flat.memory().total
        keys, values, biases = zip(*numbers(small), strict=True)
        bias = None if biases[0] is None else torch.cat(biases)
        layer.segments = [replace(flat, k=torch.cat(keys), v=torch.cat(values), bias=bias)]
    got, same, want = (drain(engine.extend(cache, ids[290:])) for cache in (few, twin, plain))
    assert_close("turned back", got, same, 1e-5)
    if bits == 8:
        assert_close("not quantized", got, want, 0.02)


@pytest.mark.parametrize("name, bits", paired([*EVICTING, "kvmerger"], [4, 8, 2]))
def test_a_budget_in_bytes_suffices_in_few_bits_too(name, bits):
    budget, scene = Budget(bytes=40_000), random_scene(4, 2, 900, 40, dim=32)
    few, plain = (parse_method(name, budget, [f"bits={n}"]) for n in (bits, 16))
    segment, geometry = compressed(few, scene), replace(scene.geometry, bits=bits)
    used = segment.memory().total + 2 * 4 * 4  # starts and lengths of the tail's heads
    assert 0 <= 40_000 - used < geometry.layer_bytes + 2 * geometry.entry_bytes + 1000
    assert sum(segment.lengths) > sum(compressed(plain, scene).lengths)


def test_bits_are_kept_with_another_budget():
    assert parse_method("adakv:bits=16") == parse_method("adakv")
    half = with_budget(parse_method("adakv:bits=4"), Budget(fraction=0.5))
    assert half.budget == Budget(fraction=0.5) and half.bits == 4
