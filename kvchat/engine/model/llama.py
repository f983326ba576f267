"""Llama 1 to 3.x: the shared decoder as it is, biases where the config asks for them."""

from kvchat.engine.model.decoder import Decoder


class Llama(Decoder):
    """LLaMA (arXiv 2302.13971); Llama 3 (arXiv 2407.21783) adds GQA and `llama3` RoPE."""
