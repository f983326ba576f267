"""The parts of a decoder block. A block projects and finishes; whoever runs it stores the keys and
attends in between."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kvchat.engine import ops
from kvchat.engine.cache.low_rank import Features
from kvchat.engine.cache.tail import Tail
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.model.shard import Shard
from kvchat.engine.peers import ALONE, Peers
from kvchat.engine.weights.linear import FewBits, Linear, joined


class Rotation(NamedTuple):
    """Cosine and sine `[T, D/2]` fp32 of T positions, and what queries there are raised by
    (`[T, 1, 1]`), if they are."""

    cos: Tensor
    sin: Tensor
    raised: Tensor | None = None

    def part(self, a: int, b: int | None = None) -> "Rotation":
        """That of positions `a` to `b` of these."""
        return Rotation(*(None if x is None else x[a:b] for x in self))  # type: ignore[arg-type]


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dim.

    The weight may be in fp32 where hidden states are not: then it is applied before rounding.
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype of `x`."""
        return ops.rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """The four projections of grouped-query attention, and the norms of queries and keys."""

    def __init__(self, config: ModelConfig, peers: Peers = ALONE):
        super().__init__()
        self.head_dim, self.peers = config.head_dim, peers
        queries = config.num_heads * config.head_dim
        kv = config.num_kv_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, queries, bias=config.qkv_bias)
        self.k_proj = Linear(config.hidden_size, kv, bias=config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, kv, bias=config.qkv_bias)
        self.cuts = Shard(peers.rank, peers.count).cuts(config.hidden_size)
        outputs = self.cuts[peers.rank]
        self.o_proj = Linear(queries * peers.count, outputs, bias=config.output_bias)
        self.by_head = config.qk_norm == "head"
        if config.qk_norm:
            sizes = (config.head_dim,) * 2 if self.by_head else (queries, kv)
            sizes = sizes if self.by_head else (sizes[0] * peers.count, sizes[1] * peers.count)
            self.q_norm: nn.Module = RMSNorm(sizes[0], config.rms_norm_eps)
            self.k_norm: nn.Module = RMSNorm(sizes[1], config.rms_norm_eps)
        else:
            self.q_norm = self.k_norm = nn.Identity()
        self.sizes = (queries, kv, kv)
        self._joined: list[nn.Module] = []  # of q, k and v, which are views of it; no submodule

    @property
    def maps(self) -> list[nn.Module]:
        """What is multiplied with."""
        return [*(self._joined or (self.q_proj, self.k_proj, self.v_proj)), self.o_proj]

    def join(self) -> None:
        """Make one product of three."""
        whole = joined([self.q_proj, self.k_proj, self.v_proj])
        self._joined = [] if whole is None else [whole]

    def together(self, x: Tensor) -> Tensor:
        """Queries, keys and values `[T, (H*G + 2H) * D]` side by side, as they are projected."""
        if self._joined:
            y: Tensor = self._joined[0](x)
            return y
        return torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), dim=1)

    @property
    def norms(self) -> tuple[Tensor, Tensor] | None:
        """The weights of the norms of queries and keys."""
        if isinstance(self.q_norm, RMSNorm) and isinstance(self.k_norm, RMSNorm):
            return self.q_norm.weight, self.k_norm.weight
        return None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `[T, H*G, D]`, keys and values `[T, H, D]` of normed `x [T, hidden]`."""
        if self._joined:
            q, k, v = self._joined[0](x).split(self.sizes, dim=1)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        split = (len(x), -1, self.head_dim)
        if self.by_head:
            return self.q_norm(q.view(split)), self.k_norm(k.view(split)), v.view(split)
        q, k = self._normed(self.q_norm, q), self._normed(self.k_norm, k)
        return q.view(split), k.view(split), v.view(split)

    def _normed(self, norm: nn.Module, x: Tensor) -> Tensor:
        """`x` of this rank's heads, normed over all heads."""
        if self.peers.count == 1 or not isinstance(norm, RMSNorm):
            y: Tensor = norm(x)
            return y
        return self.peers.own(norm(self.peers.joined(x, 1)), 1)

    def outputs(self, o: Tensor) -> Tensor:
        """What heads have attended to, `[T, H*G*D]` of this rank's, as `[T, hidden]`."""
        y: Tensor = self.o_proj(self.peers.joined(o, 1))
        return self.peers.joined(y, 1, self.cuts)

    def projection(self, dtype: torch.dtype) -> Tensor:
        """The numbers of the output projection of this rank's heads, `[hidden, H*G*D]`."""
        weight: Tensor = self.o_proj.dense(dtype).contiguous()  # products of others are others
        return self.peers.own(self.peers.joined(weight, 0, self.cuts), 1)


class MLP(nn.Module):
    """A gated MLP: `down(f(gate(x)) * up(x))`, f is SiLU (SwiGLU) or GELU (GeGLU, 2002.05202)."""

    def __init__(self, config: ModelConfig, peers: Peers = ALONE, whole: int = 0):
        """`whole` inner values are those of all ranks together."""
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        shard = Shard(peers.rank, peers.count)
        self.peers, self.cuts = peers, shard.cuts(hidden)
        self.inner = shard.cuts(whole or inner)
        self.gate_proj = Linear(hidden, inner, bias=bias)
        self.up_proj = Linear(hidden, inner, bias=bias)
        self.down_proj = Linear(sum(self.inner), self.cuts[peers.rank], bias=bias)
        self.gated = ops.swiglu if config.activation == "silu" else ops.geglu
        self._joined: list[nn.Module] = []  # of gate and up, which are views of it; no submodule

    @property
    def maps(self) -> list[nn.Module]:
        """What is multiplied with."""
        return [*(self._joined or (self.gate_proj, self.up_proj)), self.down_proj]

    def join(self) -> None:
        """Make one product of gate and up."""
        whole = joined([self.gate_proj, self.up_proj])
        self._joined = [] if whole is None else [whole]

    def forward(self, x: Tensor) -> Tensor:
        """`[T, hidden]` to `[T, hidden]`."""
        if self._joined:
            gate, up = self._joined[0](x).chunk(2, dim=1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        y: Tensor = self.down_proj(self.peers.joined(self.gated(gate, up), 1, self.inner))
        return self.peers.joined(y, 1, self.cuts)


class Pending(NamedTuple):
    """What a block leaves to be added to the residual stream: `scale * behind(delta)`."""

    delta: Tensor
    behind: nn.Module
    scale: float

    def added(self, x: Tensor, norm: nn.Module, eps: float) -> tuple[Tensor, Tensor]:
        """The stream `x [T, hidden]` with it, and the `norm` of that (itself where there is
        none)."""
        weight, own = (
            each.weight if isinstance(each, RMSNorm) else None for each in (norm, self.behind)
        )
        return ops.add_rms_norm(x, self.delta, weight, eps, own, self.scale)


class Block(nn.Module):
    """One decoder layer in two halves around attention.

    `input_layernorm` stands before attention, `post_attention_layernorm` before the MLP,
    `attention_output_norm` and `mlp_output_norm` behind them; where a family has none it is an
    identity.
    """

    def __init__(self, config: ModelConfig, number: int, peers: Peers = ALONE, inner: int = 0):
        """`inner` values of the MLP are those of all ranks together."""
        super().__init__()
        self.kind = config.layers[number]
        before, behind = config.norms in ("pre", "both"), config.norms in ("post", "both")

        def norm(there: bool) -> nn.Module:
            return RMSNorm(config.hidden_size, config.rms_norm_eps) if there else nn.Identity()

        self.input_layernorm = norm(before)
        self.self_attn = Attention(config, peers)
        self.attention_output_norm = norm(behind)
        self.post_attention_layernorm = norm(before)
        self.mlp = MLP(config, peers, inner)
        self.mlp_output_norm = norm(behind)
        self.residual, self.eps = config.residual_scale, config.rms_norm_eps
        self.factors = _query_factors(config, self.kind.rope)
        self.features: Features | None = None  # that were fitted to the model
        self._query: float | Tensor | None = None
        self._wide_factors: Tensor | None = None

    def join(self) -> None:
        """Make one product of those that share their input; a card starts each for some µs."""
        self.self_attn.join()
        self.mlp.join()

    @property
    def maps(self) -> list[nn.Module]:
        """What is multiplied with."""
        return [*self.self_attn.maps, *self.mlp.maps]

    def let_go(self) -> None:
        """Give up the numbers of weights that are held: memory has run out."""
        for each in self.maps:
            if isinstance(each, FewBits):
                each.hold(False)

    def project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `[T, H*G, D]`, keys and values `[H, T, D]` of `x [T, hidden]`, rotated.

        All that scales logits beside `D^-0.5` is in the queries.
        """
        q, k, v = self.self_attn(self.input_layernorm(x))
        turned = ops.rope(torch.cat((q, k), dim=1), rotation.cos, rotation.sin)  # in one go
        q, k = turned.split((q.shape[1], k.shape[1]), dim=1)
        if self.factors is not None:
            q = q * self._query_scale(q)
        if rotation.raised is not None:
            q = q * rotation.raised.to(q.dtype)
        return q, k.transpose(0, 1), v.transpose(0, 1)

    def _query_scale(self, q: Tensor) -> float | Tensor:
        """What queries are multiplied by: a number, or one for every value of a head."""
        if self._query is None:
            assert self.factors is not None
            same = len(set(self.factors)) == 1
            self._query = self.factors[0] if same else torch.tensor(self.factors).to(q)
        return self._query

    def output(self, dtype: torch.dtype) -> Tensor:
        """The output projection by query head, `[H*G, D, hidden]`; a view of plain weights."""
        weight = self.self_attn.projection(dtype)
        return weight.t().view(-1, self.self_attn.head_dim, weight.shape[0])

    def begin(self, x: Tensor, pending: Pending | None) -> tuple[Tensor, Tensor]:
        """The residual stream with what the block before has left, and this block's input."""
        if pending is None:
            return x, self.input_layernorm(x)
        return pending.added(x, self.input_layernorm, self.eps)

    def place(self, h: Tensor, rotation: Rotation, tail: Tail, place: Tensor) -> Tensor:
        """As `project`, of the block's input `h [T, hidden]`: returns the queries, and puts keys
        and values into the tail's store from `place [1]` on. One launch on a card."""
        if self.factors is not None and self._wide_factors is None:
            self._wide_factors = torch.tensor(self.factors, device=h.device)
        attention, raised = self.self_attn, rotation.raised
        return ops.place_entries(
            attention.together(h),
            rotation.cos,
            rotation.sin,
            tail.k,
            tail.v,
            place,
            attention.norms,
            self.eps,
            self._wide_factors,
            None if raised is None else raised.flatten(),
        )

    def attended(self, x: Tensor, o: Tensor) -> tuple[Tensor, Pending]:
        """The residual stream with the attended `o [T, H*G, D]`, and what the MLP makes of it."""
        delta = self.self_attn.outputs(o.flatten(1).to(x.dtype))
        first = Pending(delta, self.attention_output_norm, self.residual)
        x, h = first.added(x, self.post_attention_layernorm, self.eps)
        return x, Pending(self.mlp(h), self.mlp_output_norm, self.residual)

    def finish(self, x: Tensor, o: Tensor) -> Tensor:
        """The layer's output `[T, hidden]` from its input `x` and the attended `o [T, H*G, D]`."""
        x, pending = self.attended(x, o)
        return pending.added(x, nn.Identity(), self.eps)[0]


def _query_factors(config: ModelConfig, number: int) -> tuple[float, ...] | None:
    """What the values of a query are multiplied by, or None.

    YaRN scales rotated queries and keys; only their products matter, so queries take both.
    """
    rope, half = config.ropes[number], config.head_dim // 2
    turned = rope.dim // 2
    factors = [config.query_scale * rope.attention**2] * turned
    factors += [config.query_scale] * (half - turned)
    return (*factors, *factors) if any(factor != 1.0 for factor in factors) else None
