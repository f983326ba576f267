"""The decoder that all families share, taken apart: caching and observing happen outside."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kvchat.engine.model.config import ModelConfig, Rope
from kvchat.engine.model.layers import Block, RMSNorm, Rotation
from kvchat.engine.model.rope import frequencies
from kvchat.engine.model.shard import Shard
from kvchat.engine.peers import ALONE, Peers
from kvchat.engine.weights.linear import STORED, Embedding, Linear, held


class Stack(nn.Module):
    """What checkpoints call `model`: embedding, layers, final norm."""

    def __init__(self, whole: ModelConfig, peers: Peers = ALONE):
        super().__init__()
        shard = Shard(peers.rank, peers.count)
        config, inner = shard.of(whole), whole.intermediate_size
        begin, end = shard.rows(config.vocab_size)
        self.embed_tokens = Embedding(end - begin, config.hidden_size)
        self.layers = nn.ModuleList(
            Block(config, n, peers, inner) for n in range(config.num_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Decoder(nn.Module):
    """A decoder with normed blocks, rotary positions and tied or untied embeddings.

    `dtype` is what is computed in; weights may be stored in others. Beside `peers` it holds a part:
    `config` then has the heads of this rank, `whole` those of all.
    """

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype = torch.float32, peers: Peers = ALONE
    ):
        super().__init__()
        shard = Shard(peers.rank, peers.count)
        self.whole, self.config, self.dtype, self.peers = config, shard.of(config), dtype, peers
        self.model = Stack(config, peers)
        self.blocks: list[Block] = list(self.model.layers)  # type: ignore[arg-type]
        self.tokens, self.first = shard.cuts(config.vocab_size), shard.rows(config.vocab_size)[0]
        rows = self.tokens[peers.rank]
        self.lm_head: nn.Module = Linear(config.hidden_size, rows, bias=False)
        self.weights = "auto"  # how they are stored, see `bits.WEIGHTS`
        self._inverse: list[Tensor] = []
        self.tie()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.norm.weight.device

    @property
    def stored(self) -> str:
        """How weights are stored: in few bits, the dtype that is computed in, or what of these a
        GGUF file leads to, as in `int4 and bfloat16` (matrices; norms do not count)."""
        if self.weights in STORED:
            return self.weights
        kinds = {type(module) for module in self.modules()}
        few = [name for name, kind in STORED.items() if kind in kinds]
        plain = str(self.dtype).removeprefix("torch.")
        dense = [plain] if kinds & {Linear, Embedding} or not few else []
        return " and ".join([*few, *dense])

    def held(self) -> Iterator[tuple[int, Block]]:
        """Every block and its number, while a document passes it: on a card with room weights in
        few bits are turned back once, not for every chunk."""
        for number, block in enumerate(self.blocks):
            with held(block.maps, self.dtype.itemsize):
                yield number, block

    @property
    def full_blocks(self) -> list[Block]:
        """The blocks that attend to all tokens."""
        return [self.blocks[number] for number in self.config.full_layers]

    def tie(self) -> None:
        """Let the output projection share the embedding where the config says so."""
        if self.config.tie_word_embeddings:
            self.lm_head = self.model.embed_tokens.tied(self.lm_head)

    def embed(self, ids: Tensor) -> Tensor:
        """Hidden states `[T, hidden]` of `ids [T]`."""
        x = self._looked_up(ids)
        scale = self.config.embedding_scale
        # the scale is rounded as the model was trained with it
        return x if scale == 1.0 else x * x.new_tensor(scale)

    def _looked_up(self, ids: Tensor) -> Tensor:
        """Rows of the table, whoever has them."""
        if self.peers.count == 1:
            found: Tensor = self.model.embed_tokens(ids)
            return found
        rows = self.tokens[self.peers.rank]
        own = (ids >= self.first) & (ids < self.first + rows)
        found = self.model.embed_tokens((ids - self.first).clamp(0, rows - 1))
        return self.peers.merged(found.masked_fill(~own[:, None], 0))

    def rotations(self, positions: Tensor) -> list[Rotation]:
        """At `positions [T]`, for each of the config's `ropes`."""
        if not self._inverse or self._inverse[0].device != positions.device:
            dim = self.config.head_dim
            every = [frequencies(rope, dim) for rope in self.config.ropes]
            self._inverse = [inverse.to(positions.device) for inverse in every]
        where = positions.float()
        found = []
        for rope, inverse in zip(self.config.ropes, self._inverse, strict=True):
            phase = where[:, None] * inverse[None]
            found.append(Rotation(phase.cos(), phase.sin(), _raised(rope, where)))
        return found

    def logits(self, x: Tensor) -> Tensor:
        """Next-token logits `[T, vocab]` of final hidden states `x [T, hidden]`."""
        return self.predicted(self.model.norm(x))

    def predicted(self, h: Tensor) -> Tensor:
        """Next-token logits `[T, vocab]` of normed hidden states `h [T, hidden]`."""
        return self.bounded(self.peers.joined(self.lm_head(h), 1, self.tokens))

    def bounded(self, y: Tensor) -> Tensor:
        """Logits `y` of the output projection, divided and capped where the model does so."""
        if self.config.logit_divisor != 1.0:
            y = y / self.config.logit_divisor
        if cap := self.config.logit_cap:
            y = torch.tanh(y / cap) * cap
        return y


def _raised(rope: Rope, positions: Tensor) -> Tensor | None:
    """What queries at `positions [T]` are multiplied by, `[T, 1, 1]`, or None."""
    if not rope.beta:
        return None
    beyond = torch.log1p(torch.floor(positions / rope.original))
    return (1 + rope.beta * beyond)[:, None, None]


def empty_decoder(
    config: ModelConfig, dtype: torch.dtype = torch.float32, peers: Peers = ALONE
) -> Decoder:
    """A model on the meta device: shapes and names, no memory."""
    with torch.device("meta"):
        return Decoder(config, dtype, peers)
