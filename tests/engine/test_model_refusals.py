"""Checkpoints that are not loaded: one error of code `model`, with names and numbers, no traceback
of another kind."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvchat.engine.model.config import ModelConfig
from kvchat.engine.weights.checkpoint import find_shards, load_weights
from kvchat.errors import KvchatError
from tests.engine.tiny import load_engine, save_model


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy of a good checkpoint, to be spoilt."""
    return shutil.copytree(checkpoint(), tmp_path / "model")


def refused(folder) -> KvchatError:
    """The error of loading; the headers alone must show it."""
    with pytest.raises(KvchatError) as caught:
        next(load_weights(folder, ModelConfig.load(folder), torch.float32, torch.device("cpu")))
    assert caught.value.code == "model" and caught.value.exit_code == 3
    return caught.value


def refused_config(folder, **changes) -> KvchatError:
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value != "(gone)"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(KvchatError) as caught:
        ModelConfig.load(folder)
    assert caught.value.code == "model"
    assert "config.json" in caught.value.message
    return caught.value


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


UP, BIAS = "model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias"
NORM = {"model.norm.weight": torch.ones(49)}


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda tensors: tensors.pop(UP), [UP, "1 tensor:"]),
        (lambda tensors: tensors.update({"model.extra": torch.zeros(2)}), ["model.extra"]),
        (lambda tensors: tensors.update({BIAS: torch.zeros(64)}), [BIAS]),  # config asks for none
        (lambda tensors: tensors.update(NORM), [*NORM, "[49]", "[48]", "model.safetensors"]),
        (lambda tensors: tensors.update({UP: tensors[UP].int()}), [UP, "I32", "F32"]),
    ],
    ids=["missing", "unexpected", "bias", "misshapen", "dtype"],
)
def test_tensors_that_do_not_fit_are_named(folder, change, named):
    rewrite(folder, change)
    message = refused(folder).message
    assert all(name in message for name in [*named, str(folder)])


def test_at_most_five_of_many_are_named(folder):
    rewrite(folder, lambda tensors: [tensors.pop(n) for n in list(tensors) if "layers.0" in n])
    error = refused(folder)
    assert len(error.details["tensors"]) == 5
    assert "9 tensors" in error.message and "4 more" in error.message


def test_stored_frequencies_and_a_copy_of_a_tied_head_are_ignored(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint(tie_word_embeddings=True), tmp_path / "model")
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    rewrite(folder, lambda t: t.update(extra, **{"lm_head.weight": torch.zeros(96, 48)}))
    model = load_engine(folder).model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert float(model.lm_head.weight.abs().max()) > 0


def test_a_missing_shard_is_named(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint(max_shard_size="20KB"), tmp_path / "model")
    gone = find_shards(folder)[1]
    gone.unlink()
    error = refused(folder)
    assert gone.name in error.message and error.details["missing"] == [gone.name]


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_a_broken_index_is_no_index(checkpoint, tmp_path, text):
    folder = shutil.copytree(checkpoint(max_shard_size="20KB"), tmp_path / "model")
    (folder / "model.safetensors.index.json").write_text(text)
    assert "index" in refused(folder).message


def test_a_git_lfs_pointer_is_recognised(folder):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n"
    (folder / "model.safetensors").write_text(pointer)
    error = refused(folder)
    assert f"{len(pointer)}-byte" in error.message and str(folder) in error.tries[0]


@pytest.mark.parametrize("keep", [0, 5, 4000, -1])
def test_truncated_weights_are_damaged(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    error = refused(folder)
    assert path.name in error.message and f"{path.stat().st_size:,} bytes" in error.message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf", None])
def test_weights_of_another_format_or_none(folder, name):
    weights = folder / "model.safetensors"
    weights.rename(folder / name) if name else weights.unlink()
    assert (name or weights.name) in refused(folder).message


@pytest.mark.parametrize("content", [b"{", b"[1]", b"", b"\xff\xfe\x00"])
def test_a_config_must_be_a_json_object(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(KvchatError) as caught:
        ModelConfig.load(folder)
    assert caught.value.code == "model" and "config.json" in caught.value.message


@pytest.mark.parametrize("family", ["gpt2", None, "qwen3_moe"])
def test_other_families_are_named_with_those_that_work(folder, family):
    error = refused_config(folder, model_type=family)
    assert repr(family) in error.message and "llama, mistral" in error.message


@pytest.mark.parametrize("kind", ["yarn", "dynamic", "longrope"])
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_other_rope_kinds_are_named(folder, kind, key):
    changes = {"rope_parameters": None, key: {"rope_type": kind, "factor": 2.0}}
    assert repr(kind) in refused_config(folder, **changes).message


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"quantization_config": {}}, "None"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"num_attention_heads": 5}, "5 query heads"),
        ({"head_dim": 15}, "15"),
        ({"hidden_size": "(gone)"}, "hidden_size"),
        ({"vocab_size": "(gone)"}, "vocab_size"),
        ({"num_hidden_layers": "many"}, "many"),
        ({"num_attention_heads": 0, "head_dim": "(gone)"}, "config.json"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "0.5"),
        ({"rope_parameters": "fast"}, "config.json"),
    ],
)
def test_what_is_not_supported_is_said(folder, changes, said):
    assert said in refused_config(folder, **changes).message


def test_no_quantisation_is_no_obstacle(folder):
    config = json.loads((folder / "config.json").read_text())
    assert ModelConfig.from_dict({**config, "quantization_config": None}).vocab_size == 96


def test_the_context_is_the_smaller_of_window_and_positions(tmp_path):
    for window, limit in ((None, 1024), (64, 64), (4096, 1024)):
        folder = save_model(tmp_path / str(window), family="mistral", sliding_window=window)
        assert ModelConfig.load(folder).context_limit == limit


def test_a_missing_window_is_the_family_s_default(folder):
    """transformers reads 4096 for Mistral where the key is missing, and no window for Llama."""
    raw = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 8192}
    raw.pop("sliding_window", None)
    for family, limit in (("mistral", 4096), ("llama", 8192)):
        assert ModelConfig.from_dict({**raw, "model_type": family}).context_limit == limit
