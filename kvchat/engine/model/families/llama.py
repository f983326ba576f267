"""LLaMA (arXiv 2302.13971); Llama 3 (2407.21783) adds GQA and `llama3` RoPE."""

from kvchat.engine.model.families import Family, all_biases

FAMILY = Family(all_biases)
