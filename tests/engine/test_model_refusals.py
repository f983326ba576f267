"""Checkpoints that are not loaded: one error of code `model`, with names and numbers, no traceback
of another kind."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvchat.engine.gguf import is_gguf
from kvchat.engine.model.hugging_face import interpret
from kvchat.engine.model.read import load_config
from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.engine.weights.checkpoint import load_weights
from kvchat.engine.weights.safetensors import find_shards
from kvchat.errors import KvchatError
from tests.engine.tiny import load_engine
from tests.support.intime import in_time

UP, BIAS = "model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias"
NORM = {"model.norm.weight": torch.ones(49)}


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy of a good checkpoint, to be spoilt."""
    return shutil.copytree(checkpoint(), tmp_path / "model")


@pytest.fixture
def sharded(checkpoint, tmp_path):
    return shutil.copytree(checkpoint(max_shard_size="20KB"), tmp_path / "model")


def refused(folder, *named: str) -> KvchatError:
    """The error of loading, of the headers alone; `named` and the folder are in it."""
    with pytest.raises(KvchatError) as caught:
        next(load_weights(folder, load_config(folder), torch.float32, torch.device("cpu")))
    error = caught.value
    assert error.code == "model" and error.exit_code == 3
    text = " ".join([error.message, *error.tries])
    assert all(name in text for name in [*named, str(folder)])
    return error


def raw_config(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


def refused_config(folder, text: bytes | dict, *named: str) -> None:
    data = json.dumps(text).encode() if isinstance(text, dict) else text
    (folder / "config.json").write_bytes(data)
    with pytest.raises(KvchatError) as caught:
        load_config(folder)
    assert caught.value.code == "model"
    assert all(name in caught.value.message for name in [*named, "config.json"])


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda tensors: tensors.pop(UP), [UP]),
        (lambda tensors: tensors.update({"model.extra": torch.zeros(2)}), ["model.extra"]),
        (lambda tensors: tensors.update({BIAS: torch.zeros(64)}), [BIAS]),  # config asks for none
        (lambda tensors: tensors.update(NORM), [*NORM, "[49]", "[48]", "model.safetensors"]),
        (lambda tensors: tensors.update({UP: tensors[UP].int()}), [UP, "I32", "F32"]),
    ],
    ids=["missing", "unexpected", "bias", "misshapen", "dtype"],
)
def test_tensors_that_do_not_fit_are_named(folder, change, named):
    rewrite(folder, change)
    refused(folder, *named)


def test_at_most_five_of_many_are_named(folder):
    rewrite(folder, lambda tensors: [tensors.pop(n) for n in list(tensors) if "layers.0" in n])
    assert len(refused(folder, "9 tensors", "4 more").details["tensors"]) == 5


def test_stored_frequencies_and_a_copy_of_a_tied_head_are_ignored(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint(tie_word_embeddings=True), tmp_path / "model")
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    rewrite(folder, lambda t: t.update(extra, **{"lm_head.weight": torch.zeros(96, 48)}))
    model = load_engine(folder).model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert float(model.lm_head.weight.abs().max()) > 0


def test_a_missing_shard_and_a_broken_index(sharded):
    gone = find_shards(sharded)[1]
    gone.unlink()
    assert refused(sharded, gone.name).details["missing"] == [gone.name]
    for text in ("{", "[]", '{"weight_map": 3}', "{}"):
        (sharded / "model.safetensors.index.json").write_text(text)
        refused(sharded, "index")


def test_a_git_lfs_pointer_is_recognised(folder):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n"
    (folder / "model.safetensors").write_text(pointer)
    assert str(folder) in refused(folder, f"{len(pointer)}-byte").tries[0]


@pytest.mark.parametrize("keep", [0, 5, 4000, -1])
def test_truncated_weights_are_damaged(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, path.name, f"{path.stat().st_size:,} bytes")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf", None])
def test_weights_of_another_format_or_none(folder, name):
    weights = folder / "model.safetensors"
    weights.rename(folder / name) if name else weights.unlink()
    refused(folder, name or weights.name)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"", b"\xff\xfe\x00"])
def test_a_config_must_be_a_json_object(folder, content):
    refused_config(folder, content)


@pytest.mark.parametrize(
    "changes, named",
    [
        *(({"model_type": name}, [repr(name), "llama, mistral"]) for name in ("gpt2", None)),
        *(({"rope_parameters": None, key: {"rope_type": kind, "factor": 2.0}}, [repr(kind)])
          for key, kind in (("rope_parameters", "mrope"), ("rope_scaling", "proportional"))),
        ({"quantization_config": {"quant_method": "gptq"}}, ["gptq"]),
        ({"quantization_config": {}}, ["None"]),
        ({"hidden_act": "gelu"}, ["gelu"]),
        ({"num_attention_heads": 5}, ["5"]),
        ({"head_dim": 15}, ["15"]),
        ({"hidden_size": "(gone)"}, ["hidden_size"]),
        ({"vocab_size": "(gone)"}, ["vocab_size"]),
        ({"num_hidden_layers": "many"}, ["many"]),
        ({"num_hidden_layers": 2**30}, [f"{2**30:,}"]),  # takes no time and no memory
        ({"num_attention_heads": 0, "head_dim": "(gone)"}, []),
        ({"rope_parameters": {"rope_type": "linear"}}, ["factor"]),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.35}}, ["16"]),
        ({"layer_types": ["full_attention", "linear_attention"]}, ["linear_attention"]),
        ({"model_type": "gemma3"}, ["text_config"]),
        ({"rope_parameters": "fast"}, []),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(folder, changes, named):
    config = {**raw_config(folder), **changes}
    refused_config(folder, {k: v for k, v in config.items() if v != "(gone)"}, *named)


def test_the_context_is_the_smaller_of_window_and_positions(folder):
    """transformers reads 4096 for Mistral where the window is missing, and none for Llama."""
    raw = {**raw_config(folder), "quantization_config": None}  # which is no obstacle
    raw.pop("sliding_window", None)
    for family, given, limit in (
        ("mistral", {"sliding_window": None}, 8192),
        ("mistral", {"sliding_window": 64}, 64),
        ("mistral", {"sliding_window": 10_000}, 8192),
        ("mistral", {}, 4096),
        ("llama", {}, 8192),
    ):
        config = {**raw, "model_type": family, "max_position_embeddings": 8192, **given}
        assert interpret(config).context_limit == limit


@pytest.mark.parametrize(
    "scaling, more, window, most",
    [
        ({"type": "linear", "factor": 4.0}, {}, 4096, 16384),
        ({"type": "linear", "factor": 4.0}, {"max_sequence_length": 16384}, 16384, 16384),
        ({"type": "dynamic", "factor": 2.0}, {}, 4096, 8192),
        (
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
            {},
            16384,
            16384,
        ),
        (None, {}, 4096, 4096),
    ],
)
def test_windows_of_scaled_positions(folder, scaling, more, window, most):
    """What a config was trained for, and the most that --ctx-size may ask for."""
    raw = json.loads((folder / "config.json").read_text())
    raw.pop("rope_parameters", None)
    raw |= {"max_position_embeddings": 4096, "rope_scaling": scaling} | more
    config = interpret(raw)
    assert (config.context_limit, config.stretched) == (window, most)
    assert config.within(most).context_limit == most
    assert (config.window(None), config.window(most), config.window(1)) == (window, most, 1)
    for outside in (0, most + 1):
        with pytest.raises(KvchatError, match=f"{most:,}"):
            config.window(outside)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_scaled_positions_do_not_reach_beyond_the_window_of_all_layers(folder, kind):
    scaling = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    own = {"model_type": "mistral", "rope_parameters": scaling, "max_position_embeddings": 8192}
    wide = interpret(raw_config(folder) | own | {"sliding_window": None})
    narrow = interpret(raw_config(folder) | own | {"sliding_window": 64})
    assert wide.stretched == 32768
    assert (narrow.max_position, narrow.stretched) == (64, 64)


def test_scaling_under_its_older_name_counts_more_than_what_is_usual(folder):
    """Ministral 3 has a scaling of its own, for configs that say nothing."""
    scaling = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
    own = {"model_type": "ministral3", "rope_theta": 500.0, "rope_scaling": scaling}
    raw = {**raw_config(folder), **own}
    del raw["rope_parameters"]
    (rope,) = interpret(raw).ropes
    assert (rope.factor, rope.original, rope.theta, rope.beta) == (2.0, 64, 500.0, 0.0)
    del raw["rope_scaling"]
    (rope,) = interpret(raw).ropes
    assert (rope.factor, rope.original, rope.beta) == (16.0, 16384, 0.1)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/hostname", "a/../../b.safetensors", "", "n" * 5000, "."]
)
def test_shards_are_files_of_the_folder(sharded, name):
    """Whatever an index names, nothing outside is opened."""
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][UP] = name
    path.write_text(json.dumps(index))
    (sharded.parent / "model.safetensors").write_bytes(b"secret")
    error = refused(sharded)
    assert len(error.message) < 1000 and "damaged" not in error.message


def test_shards_in_a_folder_inside_and_behind_links_are_found(sharded, tmp_path):
    """As the hub's cache has them."""
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first = index["weight_map"][UP]
    (sharded / "inner").mkdir()
    (sharded / first).rename(tmp_path / "blob")
    (sharded / "inner" / first).symlink_to(tmp_path / "blob")
    index["weight_map"] = {
        name: f"inner/{file}" if file == first else file
        for name, file in index["weight_map"].items()
    }
    path.write_text(json.dumps(index))
    assert sharded / "inner" / first in find_shards(sharded)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_opened(folder, name, make):
    """A pipe would be waited for for ever."""
    (folder / name).unlink()
    make(folder / name)
    with in_time(), pytest.raises(KvchatError) as caught:
        find_shards(folder) and load_config(folder)
    assert caught.value.code == "model" and name in caught.value.message


def test_pipes_beside_a_tokenizer_and_in_place_of_a_model(folder, tokenizer_folder):
    texts = shutil.copytree(tokenizer_folder("byte-level"), folder.parent / "texts")
    os.mkfifo(texts / "chat_template.jinja")
    with in_time(), pytest.raises(KvchatError) as caught:
        Tokenizer.load(texts)
    assert "chat_template.jinja" in caught.value.message
    os.mkfifo(folder / "model.gguf")
    with in_time():
        assert not is_gguf(folder / "model.gguf")
