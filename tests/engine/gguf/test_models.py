"""Models out of GGUF files against transformers: every architecture, every format of weights."""

import pytest
import torch

from kvchat.engine.events import drain
from kvchat.engine.model.read import load_config
from kvchat.engine.weights.bits import weights_bytes
from kvchat.engine.weights.linear import Int4Linear, Int8Embedding, Int8Linear, Linear
from tests.engine.gguf.writing import write
from tests.engine.test_families import CASES, eager
from tests.engine.test_model_parity import LLAMA3
from tests.engine.tiny import load_engine, oracle_logits, random_ids, read, save_model
from tests.support.closeness import assert_close, relative_rms
from tests.support.errors import refused

IDS = random_ids(100)
# llama.cpp itself was given these files: the same logits within its f16 KV (0.1 to 0.3 %)
NAMES = (
    "qwen2", "qwen2 yarn", "qwen3", "qwen3 with biases", "ministral3", "phi3",
    "phi3, a part rotated", "phi3 longrope", "phi-4-mini", "smollm3", "granite", "olmo2", "glm4",
    "glm4 wholly rotated",
)  # fmt: skip
GEMMA = ("gemma2", "gemma2, small caps", "gemma3")
FILES = {name: CASES[name] for name in NAMES}
FILES |= {name: CASES[name] | {"query_pre_attn_scalar": 16} for name in GEMMA}
FILES |= {
    "llama": {},
    "llama3": {"rope_parameters": LLAMA3},
    "tied": {"tie_word_embeddings": True},
}


@pytest.mark.parametrize("case", FILES.values(), ids=FILES.keys())
def test_logits_of_a_file_equal_transformers(tmp_path, case):
    folder = save_model(tmp_path / "model", **({"num_hidden_layers": 4} | case))
    oracle = eager(folder)
    want = oracle_logits(oracle, IDS)
    engine = load_engine(write(tmp_path / "model.gguf", oracle), chunk=33)
    cache, logits = read(engine, IDS[:99])
    assert_close("prefill", logits, want[98], 2e-5)
    assert_close("decode", drain(engine.extend(cache, IDS[99:])), want[99], 2e-5)


WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "vocab_size": 128}
# format of the file: what stands in the place of a matrix, of the embedding, and how far its
# numbers may be from the file's
HELD = {
    "F16": (Linear, None, 0.0),
    "Q4_0": (Int4Linear, Int8Embedding, 3e-3),  # scales are rounded to bf16
    "Q4_1": (Int4Linear, Int8Embedding, 3e-3),
    "Q5_0": (Linear, None, 0.0),
    "Q5_1": (Linear, None, 0.0),
    "Q8_0": (Int8Linear, Int8Embedding, 1e-2),  # a scale per row in place of one per 32
}


@pytest.mark.parametrize("kind", HELD)
def test_weights_stay_as_small_as_the_file_has_them(tmp_path, kind):
    """4 bits go straight into 4-bit maps."""
    matrix, table, error = HELD[kind]
    path = write(tmp_path / "model.gguf", eager(save_model(tmp_path / "model", **WIDE)), kind)
    engine, plain = load_engine(path), load_engine(path, weights="bf16", dtype="auto")
    names = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
    for name in names:
        held = engine.model.blocks[1].get_submodule(name)
        want = dense(path, f"model.layers.1.{name}.weight")
        assert isinstance(held, matrix), name
        assert relative_rms(held.dense(torch.float32), want) <= error, name
        wide = plain.model.blocks[1].get_submodule(name)
        assert isinstance(wide, Linear) and torch.equal(wide.weight, want.bfloat16()), name
    if table:
        assert isinstance(engine.model.model.embed_tokens, table)
    assert engine.weights_bytes == weights_bytes(engine.config, 4, "auto")
    stored = "int4" if matrix is Int4Linear else "int8" if matrix is Int8Linear else "float32"
    assert stored in engine.weights.split(" and "), "not what is computed in"
    assert (plain.weights, plain.dtype) == ("bfloat16", torch.bfloat16)
    _, logits = read(engine, random_ids(60, 128))
    assert bool(logits.isfinite().all())


def dense(path, name):
    """A matrix of a llama file by gguf's own arithmetic, heads as in Hugging Face."""
    import gguf

    from kvchat.engine.gguf.tensors import NAMES, PARTS
    from kvchat.engine.weights.names import LAYER

    found = LAYER.fullmatch(name)
    part = {ours: theirs for theirs, ours in PARTS.items()}
    wanted = (
        f"blk.{found[1]}.{part[found[2].removesuffix('.weight')]}.weight"
        if found
        else next(theirs for theirs, ours in NAMES.items() if ours == name)
    )
    (tensor,) = (t for t in gguf.GGUFReader(path).tensors if t.name == wanted)
    numbers = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
    if wanted.partition(".")[2].endswith(("attn_q.weight", "attn_k.weight")):
        pairs = numbers.view(-1, WIDE["head_dim"] // 2, 2, numbers.shape[1])
        numbers = pairs.transpose(1, 2).reshape(numbers.shape)
    return numbers


@pytest.mark.parametrize("file", ["Q5_1", "Q4_0"])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_weights_wins_over_the_format_of_the_file(tmp_path, weights, file):
    oracle = eager(save_model(tmp_path / "model", **WIDE))
    engine = load_engine(write(tmp_path / "model.gguf", oracle, file), weights=weights)
    kind = {"int8": Int8Linear, "int4": Int4Linear}[weights]
    assert isinstance(engine.model.blocks[0].mlp.up_proj, kind)
    assert engine.weights_bytes == weights_bytes(engine.config, 4, weights)


def test_shapes_that_no_operator_takes_are_held_plain(tmp_path):
    """48 outputs are no multiple of 64: a Q4_0 of them becomes plain numbers, not an error."""
    oracle = eager(save_model(tmp_path / "model", intermediate_size=96, hidden_size=96))
    engine = load_engine(write(tmp_path / "model.gguf", oracle, "Q4_0"))
    assert isinstance(engine.model.blocks[0].mlp.up_proj, Linear)


@pytest.mark.parametrize("vectors, error", [("F16", 3e-3), ("BF16", 0.03), ("Q8_0", 0.03)])
def test_norms_and_frequencies_of_any_format(tmp_path, vectors, error):
    case = {"hidden_size": 64} | ({"rope_parameters": LLAMA3} if vectors == "F16" else {})
    oracle = eager(save_model(tmp_path / "model", **case))
    path = write(tmp_path / "model.gguf", oracle, vectors=vectors)
    _, logits = read(load_engine(path), IDS[:50])
    assert_close("logits", logits, oracle_logits(oracle, IDS[:50])[-1], error)


def test_gemma_2_of_the_first_files_has_what_they_leave_out(tmp_path, monkeypatch):
    import gguf

    shape = {"family": "gemma2", "sliding_window": 4096, "query_pre_attn_scalar": 16}
    oracle = eager(save_model(tmp_path / "model", **shape))
    want = load_config(write(tmp_path / "new.gguf", oracle))
    for name in ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping"):
        monkeypatch.setattr(gguf.GGUFWriter, f"add_{name}", lambda *_: None)
    assert want.attention_cap and want.logit_cap and want.layers[0].window
    assert load_config(write(tmp_path / "old.gguf", oracle)) == want


@pytest.mark.parametrize("family, kind", [("gemma2", "bfloat16"), ("llama", "float16")])
def test_gemma_in_f16_is_computed_in_bf16(tmp_path, family, kind):
    """Its hidden states are beyond f16: Gemma 3 270M computes NaN in it."""
    oracle = eager(save_model(tmp_path / "model", family=family, dtype=torch.float16))
    path = write(tmp_path / "model.gguf", oracle, "F16", **{"general.file_type": 1})
    assert load_config(path).dtype == load_config(tmp_path / "model").dtype == kind


@pytest.mark.parametrize("pattern", [3, [True, True, False] * 2])
def test_a_file_says_which_layers_slide(tmp_path, pattern):
    oracle = eager(save_model(tmp_path / "model", **FILES["gemma3"]))
    path = write(tmp_path / "m.gguf", oracle, **{"attention.sliding_window_pattern": pattern})
    assert load_config(path).full_layers == (2, 5)


def test_stored_frequencies_of_old_files_are_ignored(tmp_path, monkeypatch):
    from tests.engine.gguf import writing

    real = writing._tensors
    more = {f"blk.{n}.attn_rot_embd.weight": torch.zeros(8) for n in range(2)}
    monkeypatch.setattr(writing, "_tensors", lambda *a: [*real(*a), *more.items()])
    oracle = eager(save_model(tmp_path / "model"))
    _, logits = read(load_engine(write(tmp_path / "model.gguf", oracle)), IDS[:50])
    assert_close("logits", logits, oracle_logits(oracle, IDS[:50])[-1], 2e-5)


def test_scaling_without_a_kind_is_linear(tmp_path):
    """As llama.cpp reads it; `linear` without a factor, which it writes too, is none."""
    oracle = eager(save_model(tmp_path / "model"))
    for number, (about, kind, factor) in enumerate((
        ({"rope.scaling.factor": 4.0}, "linear", 4.0),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, "default", 1.0),
        ({"rope.scaling.type": "linear"}, "default", 1.0),
        ({}, "default", 1.0),
    )):  # fmt: skip
        (rope,) = load_config(write(tmp_path / f"{number}.gguf", oracle, **about)).ropes
        assert (rope.kind, rope.factor) == (kind, factor), about


@pytest.mark.parametrize("scale, count", [(0.0, None), (float("nan"), None), (1.0, -1)])
def test_frequencies_that_cannot_be_used_are_refused(tmp_path, monkeypatch, scale, count):
    from tests.engine.gguf import writing

    real = writing._llama3
    monkeypatch.setattr(writing, "_llama3", lambda *a: [scale * x for x in real(*a)[:count]])
    oracle = eager(save_model(tmp_path / "model", rope_parameters=LLAMA3))
    with refused("model", "rope_freqs"):
        load_config(write(tmp_path / "model.gguf", oracle))


@pytest.mark.parametrize("part", [0, 2])
def test_a_split_file_is_one_model_whichever_part_is_named(tmp_path, part):
    oracle = eager(save_model(tmp_path / "model"))
    first = write(tmp_path / "model.gguf", oracle, splits=3)
    named = sorted(tmp_path.glob("*.gguf"))[part]
    _, logits = read(load_engine(named), IDS[:50])
    assert_close("logits", logits, oracle_logits(oracle, IDS[:50])[-1], 2e-5)
    sorted(tmp_path.glob("*.gguf"))[1].unlink()
    with refused("model", "00002-of-00003"):
        load_config(first)


def test_what_is_not_supported_is_named(tmp_path):
    import gguf

    for name, more in (("qwen2moe", {}), ("llama", {"llama.expert_count": 8}), ("clip", {})):
        path = tmp_path / f"{name}.gguf"
        writer = gguf.GGUFWriter(path, name)
        for key, value in more.items():
            writer.add_uint32(key, value)
        for key in ("embedding_length", "block_count", "attention.head_count"):
            writer.add_uint32(f"{name}.{key}", 4)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with refused("model", "8 experts" if more else repr(name)):
            load_config(path)
