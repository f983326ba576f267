"""Weights in 8 and 4 bits: products against the numbers that the codes stand for, errors against
the step, whole models against transformers with the same rounded weights."""

import threading
from itertools import product

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvchat.engine.events import drain
from kvchat.engine.loading import load_engine
from kvchat.engine.methods.build import parse_method
from kvchat.engine.model.read import load_config
from kvchat.engine.store.identity import computation
from kvchat.engine.weights import lowbit
from kvchat.engine.weights.bits import group_of, require_shapes, weights_bytes
from kvchat.engine.weights.linear import FEW, Int4Linear, Int8Linear, Linear, joined
from kvchat.errors import KvchatError
from kvchat.kernels import reference
from tests.engine.tiny import load_oracle, oracle_logits, random_ids, read, save_model
from tests.support.closeness import assert_close

KINDS = {"int8": Int8Linear, "int4": Int4Linear}
SHAPE = {"hidden_size": 64, "intermediate_size": 192, "head_dim": 32}  # groups of 64
IDS = random_ids(100)


def weight(outputs, inputs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(outputs, 1, generator=generator)
    return torch.randn(outputs, inputs, generator=generator) * spread + 0.1


def engine_of(folder, weights, dtype="f32"):
    return drain(load_engine(folder, load_config(folder), dtype, "cpu", weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "tokens, shape",
    [(1, (64, 32)), (7, (192, 96)), (64, (2048, 640)), (65, (4160, 256)), (65, (192, 96))],
)
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_the_numbers(kind, shape, tokens, dtype):
    """By the operator and by slices; bf16 rounding of `x`, of the numbers and of the result."""
    linear = KINDS[kind].of(weight(*shape))
    x = torch.randn(tokens, shape[1], generator=torch.Generator().manual_seed(1)).to(dtype)
    want = x.double() @ linear.dense(torch.float32).double().t()
    got = linear(x)
    assert got.dtype == dtype
    exact = dtype == torch.float32 and tokens > FEW
    assert_close("product", got, want, 1e-5 if exact else 0.006)


@pytest.mark.parametrize("outputs", [1, 17, 70])
def test_eight_bits_take_any_number_of_outputs(outputs):
    """Within what bf16 rounds of `x`, the product and the sum: 2^-9 of the terms each.

    A sum of three outputs may be small beside its terms, so the sum is no measure."""
    linear = Int8Linear.of(weight(outputs, 48), torch.ones(outputs))
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(1))
    dense = linear.dense(torch.float32)
    got, want = linear(x), x @ dense.t() + 1
    assert got.shape == want.shape
    assert ((got - want).abs() <= 3 * 2**-9 * (x.abs() @ dense.abs().t() + 1)).all()


def test_errors_are_half_a_step():
    plain = weight(128, 256)
    eight, four = (kind.of(plain).dense(torch.float32) - plain for kind in KINDS.values())
    step = plain.abs().amax(1, keepdim=True) / 127
    # the stored scale may be smaller by 2^-8: what is cut off at the ends
    assert (eight.abs() <= step * (0.5 + 127 / 256)).all()
    groups = plain.view(128, 2, 128)
    step = (groups.amax(2) - groups.amin(2)).repeat_interleave(128, 1) / 15
    zero = groups.abs().amax(2).repeat_interleave(128, 1) / 256  # rounding of the zero
    assert (four.abs() <= step * (0.5 + 15 / 256) + zero).all()
    assert float(eight.norm() / plain.norm()) < 0.01 < 0.03 < float(four.norm() / plain.norm())
    assert float(four.norm() / plain.norm()) < 0.1
    for kind, value in product(KINDS.values(), (0.0, 0.5, -3.0)):
        plain = torch.full((64, 128), value)
        assert_close("a constant", kind.of(plain).dense(torch.float32), plain, 0.004)


def test_a_packing_that_is_not_known_goes_through_the_operator(monkeypatch):
    linear, x = Int4Linear.of(weight(128, 256)), torch.randn(100, 256)
    want, numbers = linear(x), linear.dense(torch.float32)
    monkeypatch.setattr(lowbit, "unpacking", lambda: None)
    assert_close("product", linear(x), want, 0.006)
    assert_close("numbers", linear.dense(torch.float32), numbers, 0.003)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_what_a_card_reads_is_what_a_cpu_reads(group, monkeypatch):
    """The codes of a card are plain pairs; both stand for the same numbers."""
    plain = weight(128, 2 * group)
    want = Int4Linear.of(plain).dense(torch.float32)
    monkeypatch.setattr(lowbit, "_pack", lowbit.pairs)
    monkeypatch.setattr("kvchat.engine.weights.linear.group_of", lambda inputs: group)
    packed, scales = lowbit.quantize_groups(plain, group_of(2 * group))
    got = reference.int4_numbers(packed, scales, torch.float32)
    assert packed.shape == (128, group) and packed.dtype == torch.uint8
    assert_close("numbers", got, want, 1e-6)
    x = torch.randn(5, 2 * group)
    assert_close("product", reference.int4_product(x, packed, scales), x @ want.T, 1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["plain", "int8", "int4"])
def test_joined_maps_are_theirs_and_store_nothing_twice(kind, bias, monkeypatch):
    monkeypatch.setattr(lowbit, "_pack", lowbit.pairs)  # as on a card
    parts = []
    for outputs in (128, 64, 64):
        own = torch.nn.Parameter(torch.randn(outputs), False) if bias else None
        if kind == "plain":
            parts.append(Linear(256, outputs, bias=bias))
            parts[-1].weight, parts[-1].bias = torch.nn.Parameter(weight(outputs, 256), False), own
        else:
            parts.append(KINDS[kind].of(weight(outputs, 256), own))
    held = sum(p.nbytes for part in parts for p in part.parameters())
    before = [{name: p.clone() for name, p in part.named_parameters()} for part in parts]
    whole = joined(parts)
    assert sum(p.nbytes for p in whole.parameters()) == held
    places = {p.untyped_storage().data_ptr() for p in whole.parameters()}
    for part, own in zip(parts, before, strict=True):
        for name, p in part.named_parameters():
            assert torch.equal(p, own[name]) and p.untyped_storage().data_ptr() in places
    if kind == "plain":
        x = torch.randn(3, 256)
        assert_close("y", whole(x), torch.cat([part(x) for part in parts], 1), 1e-6)
    assert joined([parts[0], Int8Linear.of(weight(64, 256))] if kind != "int8" else
                  [parts[0], Linear(256, 64)]) is None  # fmt: skip


CASES = {
    "plain": {},
    "tied, with biases": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "sharded": {"max_shard_size": "40KB", "attention_bias": True},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("weights", KINDS)
def test_models_equal_transformers_with_rounded_weights(tmp_path, checkpoint, weights, case):
    """By slices (exact), then the last logits, an extend and a decode by the operator."""
    changes = {name: value for name, value in case.items() if name != "max_shard_size"}
    engine = engine_of(checkpoint(**SHAPE, **case), weights)
    folder = save_model(tmp_path, **SHAPE, **changes)  # in one file, to be rounded
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if tensor.ndim == 2:
            kind = "int8" if name.startswith(("model.embed", "lm_head")) else weights
            tensors[name] = KINDS[kind].of(tensor).dense(torch.float32)
    save_file(tensors, path, {"format": "pt"})
    want = oracle_logits(load_oracle(folder), IDS)
    assert_close("scores", engine.score(engine.empty_cache(), IDS[:90]), want[:90], 1e-4)
    cache, logits = read(engine, IDS[:90])
    assert_close("prefill", logits, want[89], 0.01)
    assert_close("extend", drain(engine.extend(cache, IDS[90:97])), want[96], 0.02)
    assert_close("decode", drain(engine.extend(cache, IDS[97:98])), want[97], 0.02)
    assert engine.weights == weights and engine.dtype == torch.float32


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("weights", ["auto", "bf16", "int8", "int4"])
def test_planned_bytes_are_the_tensors(checkpoint, weights, tied):
    engine = engine_of(checkpoint(**SHAPE, tie_word_embeddings=tied), weights, "auto")
    storages = {p.untyped_storage().data_ptr(): p.nbytes for p in engine.model.parameters()}
    planned = weights_bytes(engine.config, engine.dtype.itemsize, weights)
    assert engine.weights_bytes == planned == sum(storages.values())


@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize("spec", ["critical-adakv:budget=25%", "kvzip+:budget=25%"])
def test_methods_that_weigh_by_the_output_projection(checkpoint, weights, spec):
    engine = engine_of(checkpoint(**SHAPE), weights)
    for block in engine.model.blocks:
        seen = block.output(torch.float32).permute(2, 0, 1).flatten(1)
        assert torch.equal(seen, block.self_attn.o_proj.dense(torch.float32))
    cache, _ = read(engine, IDS, parse_method(spec))
    assert sum(sum(s.lengths) for s in cache.segments()) == pytest.approx(2 * 2 * 25, abs=4)


def test_shapes_that_no_operator_takes_are_refused(checkpoint):
    folder = checkpoint(hidden_size=48)
    for weights in ("auto", "int8"):
        require_shapes(load_config(folder), weights)
    with pytest.raises(KvchatError, match=r"q_proj \[64, 48\].*\[n \* 64, n \* 32\]") as caught:
        engine_of(folder, "int4")
    assert "--weights int8" in caught.value.tries and caught.value.code == "model"
    with pytest.raises(KvchatError, match=r"embed_tokens \[96, 40\]"):
        engine_of(checkpoint(hidden_size=40), "int8")
    for weights, dtype in (("int3", "auto"), ("bf16", "f32")):  # unknown, contradicting
        with pytest.raises(KvchatError, match=weights) as caught:
            engine_of(folder, weights, dtype)
        assert caught.value.code == "usage"


def test_plain_weights_are_not_copied_to_be_seen(checkpoint):
    block = engine_of(checkpoint(), "auto").model.blocks[0]
    assert isinstance(block.self_attn.o_proj, Linear)
    weight = block.self_attn.o_proj.weight
    assert block.output(weight.dtype).untyped_storage().data_ptr() == weight.data_ptr()


def test_saved_readings_of_other_formats_are_others(checkpoint):
    folder = checkpoint(**SHAPE)
    names = [computation(engine_of(folder, w, "auto")) for w in ("auto", "bf16", *KINDS)]
    assert len(set(names)) == 4


def test_two_threads_that_quantize_do_not_share_a_workspace():
    """A model is loaded while another one has functions compiled."""
    weight, other = torch.randn(512, 2048), torch.randn(64, 64)
    want, stopped = lowbit.quantize_rows(weight), threading.Event()

    def beside():
        while not stopped.is_set():
            lowbit.quantize_rows(other)
            lowbit.quantize_groups(other, 64)

    thread = threading.Thread(target=beside)
    thread.start()
    try:
        for _ in range(100):
            codes, scale = lowbit.quantize_rows(weight)
            assert torch.equal(codes, want[0]) and torch.equal(scale, want[1])
    finally:
        stopped.set()
        thread.join()
