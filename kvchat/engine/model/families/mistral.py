"""Mistral 7B (arXiv 2310.06825) and Ministral 3: no biases.

In v0.1 every layer slides. Inside its window it is exact as a full layer, and it is refused beyond.
"""

from kvchat.engine.model.families import Family

FAMILY = Family(defaults={"sliding_window": 4096})  # transformers leaves this default out

MINISTRAL3 = Family(
    defaults={
        "head_dim": 128,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1_000_000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 16384,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    }
)
