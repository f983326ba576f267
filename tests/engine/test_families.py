"""Every model family against transformers on random shapes, fp32: prefill in chunks, extend and
decode, full and sliding layers, all kinds of RoPE."""

import pytest

from kvchat.engine.events import drain
from tests.engine.tiny import load_engine, load_oracle, oracle_logits, random_ids, read, save_model
from tests.support.closeness import assert_close

YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
MINISTRAL = YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}


def longrope(pairs, original=64):
    return {
        "rope_type": "longrope", "rope_theta": 10000.0,
        "short_factor": [1 + 0.1 * n for n in range(pairs)],
        "long_factor": [2 + 0.5 * n for n in range(pairs)],
        "original_max_position_embeddings": original,
    }  # fmt: skip


def of_kinds(**kinds):
    return {"rope_parameters": {f"{kind}_attention": rope for kind, rope in kinds.items()}}


DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
CASES = {
    "qwen2": {"family": "qwen2"},
    "qwen2 sliding": {
        "family": "qwen2", "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2,
    },
    "qwen2 yarn": {"family": "qwen2", "rope_parameters": YARN, "max_position_embeddings": 64},
    "qwen3": {"family": "qwen3"},
    "qwen3 with biases": {"family": "qwen3", "attention_bias": True},
    "ministral3": {
        "family": "ministral3", "rope_parameters": MINISTRAL, "max_position_embeddings": 256,
    },
    "phi3": {"family": "phi3"},
    "phi3, a part rotated": {
        "family": "phi3",
        "rope_parameters": {**DEFAULT, "partial_rotary_factor": 0.75},
    },
    "phi3 longrope": {
        "family": "phi3", "rope_parameters": longrope(8) | {"partial_rotary_factor": 1.0},
        "hidden_size": 64, "original_max_position_embeddings": 64,
    },
    "phi-4-mini": {
        "family": "phi3", "rope_parameters": longrope(6) | {"partial_rotary_factor": 0.75},
        "hidden_size": 64, "original_max_position_embeddings": 64,
        "tie_word_embeddings": True,
    },
    "smollm3": {"family": "smollm3", "num_hidden_layers": 4},
    "smollm3 sliding": {
        "family": "smollm3", "use_sliding_window": True, "sliding_window": 16,
        "no_rope_layers": [1, 0, 1, 0],
    },
    "granite": {
        "family": "granite", "embedding_multiplier": 6.0, "residual_multiplier": 0.4,
        "attention_multiplier": 0.2, "logits_scaling": 3.0, "attention_bias": True,
    },
    "olmo2": {"family": "olmo2", "hidden_size": 64},
    "glm4": {"family": "glm4"},
    "glm4 wholly rotated": {
        "family": "glm4", "rope_parameters": {**DEFAULT, "partial_rotary_factor": 1.0},
    },
    "gemma2": {"family": "gemma2", "sliding_window": 20, "query_pre_attn_scalar": 24},
    "gemma2, small caps": {
        "family": "gemma2", "sliding_window": 300, "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3": {
        "family": "gemma3_text", "sliding_window": 20, "num_hidden_layers": 6,
        "query_pre_attn_scalar": 24, **of_kinds(
            full={"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0}, sliding=DEFAULT,
        ),
    },
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}},
    "dynamic inside the window": {
        "rope_parameters": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 10000.0},
    },
    "yarn": {"rope_parameters": YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False}},
    "yarn, an attention factor": {"rope_parameters": YARN | {"attention_factor": 1.3}},
}  # fmt: skip
IDS = random_ids(130)


def eager(folder):
    """The oracle caps logits only so."""
    return load_oracle(folder, "eager")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_logits_equal_transformers(tmp_path, case):
    """A prefill in four chunks, a 20-token extend, three decodes, a shorter past again."""
    folder = save_model(tmp_path, **({"num_hidden_layers": 3} | case))
    engine = load_engine(folder, chunk=33)
    want = oracle_logits(eager(folder), IDS)
    assert float(want.std()) > 0.05, "flat logits would prove nothing"
    cache, logits = read(engine, IDS[:107])
    assert_close("prefill", logits, want[106], 1e-5)
    assert_close("extend", drain(engine.extend(cache, IDS[107:127])), want[126], 1e-5)
    for t in range(127, 130):
        assert_close(f"decode {t}", drain(engine.extend(cache, [IDS[t]])), want[t], 1e-5)
    cache.truncate(110)
    assert_close("a shorter past", drain(engine.extend(cache, IDS[110:115])), want[114], 1e-5)
    assert engine.config.parameters == sum(p.numel() for p in eager(folder).parameters())
