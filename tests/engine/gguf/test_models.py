"""Models out of GGUF files against transformers: every architecture, and every format of weights."""

import pytest
import torch

from kvchat.engine.events import drain
from kvchat.engine.model.read import load_config
from tests.engine.gguf.writing import write
from tests.engine.test_families import CASES, eager
from tests.engine.test_model_parity import LLAMA3
from tests.engine.tiny import load_engine, oracle_logits, random_ids, read, save_model
from tests.support.closeness import assert_close

IDS = random_ids(100)
KEPT = {
    name: case
    for name, case in CASES.items()
    if case.get("family", "llama") in {
        "qwen2", "qwen3", "ministral3", "phi3", "smollm3", "granite", "olmo2", "glm4",

    } and not case.get("use_sliding_window") and not case.get("family", "").startswith("gemma")
} | {"llama": {}, "llama3": {"rope_parameters": LLAMA3}, "tied": {"tie_word_embeddings": True}}  # fmt: skip
KEPT["gemma3"] = CASES["gemma3"] | {"query_pre_attn_scalar": 16}
KEPT["gemma2"] = CASES["gemma2"] | {"query_pre_attn_scalar": 16}
KEPT["gemma2, small caps"] = CASES["gemma2, small caps"] | {"query_pre_attn_scalar": 16}


@pytest.mark.parametrize("case", KEPT.values(), ids=KEPT.keys())
def test_logits_of_a_file_equal_transformers(tmp_path, case):
    folder = save_model(tmp_path / "model", **({"num_hidden_layers": 4} | case))
    oracle = eager(folder)
    want = oracle_logits(oracle, IDS)
    engine = load_engine(write(tmp_path / "model.gguf", oracle), chunk=33)
    cache, logits = read(engine, IDS[:99])
    assert_close("prefill", logits, want[98], 2e-5)
    assert_close("decode", drain(engine.extend(cache, IDS[99:])), want[99], 2e-5)
