"""The decoder that Llama-like families share, taken apart: caching and observing happen outside."""

import torch
from torch import Tensor, nn

from kvchat.engine.model.config import ModelConfig
from kvchat.engine.model.layers import Block, RMSNorm, Rotation, frequencies
from kvchat.engine.weights.linear import Embedding, Linear


class Stack(nn.Module):
    """What checkpoints call `model`: embedding, layers, final norm."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Decoder(nn.Module):
    """A decoder with pre-norm blocks, rotary positions and tied or untied embeddings."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Stack(config)
        self.blocks: list[Block] = list(self.model.layers)  # type: ignore[arg-type]
        self.lm_head: nn.Module = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.weights = "auto"  # how they are stored, see `bits.WEIGHTS`
        self._inverse: Tensor | None = None
        self.tie()

    def tie(self) -> None:
        """Let the output projection share the embedding where the config says so."""
        if self.config.tie_word_embeddings:
            self.lm_head = self.model.embed_tokens.tied(self.lm_head)

    def embed(self, ids: Tensor) -> Tensor:
        """Hidden states `[T, hidden]` of `ids [T]`."""
        x: Tensor = self.model.embed_tokens(ids)
        return x

    def rotation(self, positions: Tensor) -> Rotation:
        """Cosine and sine `[T, D/2]` fp32 at `positions [T]`."""
        if self._inverse is None or self._inverse.device != positions.device:
            self._inverse = frequencies(self.config).to(positions.device)
        phase = positions.float()[:, None] * self._inverse[None]
        return phase.cos(), phase.sin()

    def logits(self, x: Tensor) -> Tensor:
        """Next-token logits `[T, vocab]` of final hidden states `x [T, hidden]`."""
        y: Tensor = self.lm_head(self.model.norm(x))
        return y


def empty_decoder(family: type[Decoder], config: ModelConfig) -> Decoder:
    """A model of that family on the meta device: shapes and names, no memory."""
    with torch.device("meta"):
        return family(config)
