"""The model against transformers on tiny random checkpoints, fp32: prefill, extend and decode for
each family, RoPE kind, group size, head size, bias and way of storing weights."""

import json

import pytest
import torch

from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import drain
from kvchat.engine.weights import safetensors as loading
from tests.engine.tiny import load_engine, load_oracle, oracle_logits, random_ids, read, save_model
from tests.support.closeness import assert_close

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}
CASES = {
    "llama": {},
    "mistral": {"family": "mistral", "sliding_window": None},
    "mistral inside its window": {"family": "mistral", "sliding_window": 128},
    "llama linear": {"rope_parameters": LINEAR},
    "mistral llama3": {"family": "mistral", "sliding_window": None, "rope_parameters": LLAMA3},
    "large base": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "groups of 1": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "groups of 4": {"num_attention_heads": 8, "num_key_value_heads": 2},
    "groups of 8": {"num_attention_heads": 8, "num_key_value_heads": 1},
    "head size 64": {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1},
    "head size 80": {"head_dim": 80, "num_attention_heads": 2, "num_key_value_heads": 2},
    "head size 128": {"head_dim": 128, "num_attention_heads": 2, "num_key_value_heads": 1},
    "head size from the hidden size": {"head_dim": None},
    "tied": {"tie_word_embeddings": True},
    "attention bias": {"attention_bias": True},
    "mlp bias": {"mlp_bias": True},
    "other epsilon": {"rms_norm_eps": 0.1},
    "sharded": {"max_shard_size": "20KB"},
    "sharded and tied": {"max_shard_size": "20KB", "tie_word_embeddings": True},
}
IDS = random_ids(100)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_logits_equal_transformers(checkpoint, case):
    """A prefill in three chunks, a 5-token extend, three decodes; within 1e-5."""
    folder = checkpoint(**case)
    engine = load_engine(folder, chunk=33)
    want = oracle_logits(load_oracle(folder), IDS)
    assert float(want.std()) > 0.3, "flat logits would prove nothing"
    cache, logits = read(engine, IDS[:92])
    assert_close("prefill", logits, want[91], 1e-5)
    assert_close("extend", drain(engine.extend(cache, IDS[92:97])), want[96], 1e-5)
    for t in range(97, 100):
        logits = drain(engine.extend(cache, [IDS[t]]))
        assert_close(f"decode {t}", logits, want[t], 1e-5)
    assert cache.position == 100


def test_shards_are_several_and_each_is_opened_once(checkpoint, monkeypatch):
    folder, opened = checkpoint(**CASES["sharded"]), []
    assert (folder / "model.safetensors.index.json").exists()
    real = loading.safe_open
    monkeypatch.setattr(loading, "safe_open", lambda p, **how: opened.append(p) or real(p, **how))
    load_engine(folder)
    assert sorted(opened) == sorted(folder.glob("*.safetensors")) and len(opened) > 2


@pytest.mark.parametrize("name", ["type", "rope_type"])
@pytest.mark.parametrize("rope", [{"rope_theta": 3000.0, "rope_type": "default"}, LINEAR, LLAMA3])
def test_old_config_keys_mean_the_same(tmp_path, rope, name):
    """Before transformers 5: rope_theta at the top level, rope_scaling beside it, torch_dtype."""
    folder = save_model(tmp_path, rope_parameters=rope)
    want = oracle_logits(load_oracle(folder), IDS[:70])[-1]
    config = json.loads((folder / "config.json").read_text())
    stored = config.pop("rope_parameters")
    config["rope_theta"] = stored.pop("rope_theta")
    stored[name] = stored.pop("rope_type")
    config["rope_scaling"] = None if stored[name] == "default" else stored
    config["torch_dtype"] = config.pop("dtype", "float32")
    (folder / "config.json").write_text(json.dumps(config))
    assert_close("logits", read(load_engine(folder), IDS[:70])[1], want, 1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_greedy_tokens_equal_generate(checkpoint, family):
    folder = checkpoint(family=family)
    engine, oracle = load_engine(folder), load_oracle(folder)
    prompt = random_ids(40, seed=7)
    whole = torch.tensor([prompt])
    with torch.inference_mode():
        want = oracle.generate(
            whole, attention_mask=torch.ones_like(whole), max_new_tokens=20, do_sample=False,
            pad_token_id=0,
        )[0, 40:].tolist()  # fmt: skip
    cache, logits = read(engine, prompt)
    tokens = engine.decode(cache, logits, Sampling())
    assert [next(tokens) for _ in range(20)] == want
    assert len(set(want)) > 3, "a constant answer would prove little"
    assert cache.position == 40 + 19, "the last token is pending"


def test_a_bf16_checkpoint_runs_as_it_is_and_converted(checkpoint):
    folder = checkpoint(dtype=torch.bfloat16)
    want = oracle_logits(load_oracle(folder), IDS[:60])[-1]
    native, wide = load_engine(folder, "auto"), load_engine(folder, "f32")
    assert native.dtype == torch.bfloat16
    assert native.weights_bytes * 2 == wide.weights_bytes
    assert_close("f32", read(wide, IDS[:60])[1], want, 1e-5)
    assert_close("bf16", read(native, IDS[:60])[1], want, 0.05)
    assert_close("f16", read(load_engine(folder, "f16"), IDS[:60])[1], want, 0.01)


def test_weights_equal_the_checkpoint_and_count_tied_ones_once(checkpoint):
    for tied in (False, True):
        folder = checkpoint(tie_word_embeddings=tied)
        engine, oracle = load_engine(folder), load_oracle(folder)
        want = oracle.state_dict()
        got = engine.model.state_dict()
        assert got.keys() == want.keys()
        assert all(torch.equal(got[name], want[name]) for name in want)
        count = sum(p.numel() for p in oracle.parameters())
        assert engine.config.parameters == count
        assert engine.weights_bytes == 4 * count
