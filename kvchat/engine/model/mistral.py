"""Mistral: the shared decoder without biases; a sliding window bounds the context."""

from dataclasses import replace

from kvchat.engine.model.config import ModelConfig
from kvchat.engine.model.decoder import Decoder


class Mistral(Decoder):
    """Mistral 7B (arXiv 2310.06825). Exact inside its sliding window, refused beyond it."""

    def __init__(self, config: ModelConfig):
        super().__init__(replace(config, attention_bias=False, mlp_bias=False))
