"""The model families: how each differs from the shared decoder."""

from dataclasses import replace

from kvchat.engine.model.config import ModelConfig
from kvchat.engine.model.decoder import Decoder


class Llama(Decoder):
    """LLaMA (arXiv 2302.13971); Llama 3 (arXiv 2407.21783) adds GQA and `llama3` RoPE.

    Biases where the config asks for them.
    """


class Mistral(Decoder):
    """Mistral 7B (arXiv 2310.06825), without biases. Exact inside its sliding window, refused
    beyond it."""

    def __init__(self, config: ModelConfig):
        super().__init__(replace(config, attention_bias=False, mlp_bias=False))
