"""Attention by torch's fused kernels: the CPU path, and a plain path on any other device.

No T x T mask and no expanded heads: query heads of one KV head become query entries (rectangle) or
a batch over stride-0 keys (square). The fused CPU kernel returns the log-sum-exp that we need.
"""

import torch
from torch import Tensor

from kvchat.engine.attention.entries import Call, Entries, dense, even
from kvchat.engine.sizes import PLAIN_VALUES
from kvchat.kernels.reference import combine, dense_attention

FUSED_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
# Up to so many queries of a head, products are as fast as the fused kernel for wide heads and
# faster for narrow ones; not in 16 bits, where they would round the logits.
FEW = 16
BLOCK = 32  # queries that the fused kernel takes in one block
PIECE = 2**17  # values of keys that are worth a thread


class TorchBackend:
    """A `Backend` that reaches every device; fused on the CPU, plain elsewhere."""

    name = "torch"

    def __init__(self, cap: float = 0.0):
        self.cap = cap  # by the plain path: the fused kernels cap nothing

    def can(self, call: Call) -> str | None:
        """Why not, or None."""
        if call.kind == "joint":
            return "takes one entry set at a time"
        return f"takes no entries of {call.bits} bits" if call.bits < 16 else None

    def attend(self, q: Tensor, entries: Entries, scale: float) -> tuple[Tensor, Tensor]:
        if q.device.type != "cpu" or entries.bounds or self.cap:
            return plain_attend(q, entries, scale, self.cap)
        tokens, query_heads, dim = q.shape
        heads = len(entries.spans)
        # [T, H*G, D] -> [H, G*T, D]: all queries of a KV head in one block of entries
        grouped = q.view(tokens, heads, -1, dim).permute(1, 2, 0, 3).reshape(heads, -1, dim)
        whole = _uniform if entries.spans[0][1] and even(entries.spans) else _ragged
        o, lse = whole(grouped, entries, scale)
        o = o.view(heads, -1, tokens, dim).permute(2, 0, 1, 3)  # [T, H, G, D]
        lse = lse.view(heads, -1, tokens).permute(2, 0, 1)
        return o.reshape(tokens, query_heads, dim), lse.reshape(tokens, query_heads)

    def causal(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        tokens, query_heads, dim = q.shape
        heads = k.shape[0]
        assert k.shape[1] == tokens, f"a square needs {tokens} entries, got {k.shape[1]}"
        if q.device.type != "cpu" or self.cap:
            return plain_causal(q, k, v, scale, self.cap)
        group = query_heads // heads
        batched = q.view(tokens, heads, group, dim).permute(2, 1, 0, 3)  # [G, H, T, D]
        shape = (group, heads, tokens, dim)
        o, lse = FUSED_CPU(batched, k.expand(shape), v.expand(shape), 0.0, True, scale=scale)
        o = o.permute(2, 1, 0, 3).reshape(tokens, query_heads, dim)
        return o, lse.permute(2, 1, 0).reshape(tokens, query_heads)


def _uniform(q: Tensor, entries: Entries, scale: float) -> tuple[Tensor, Tensor]:
    """One call for heads of equal length and spacing. q `[H, G*T, D]`."""
    k, v = (dense(store, entries.spans) for store in (entries.k, entries.v))
    bias = None if entries.bias is None else dense(entries.bias, entries.spans)
    return (_products if _few(q) else _fused)(q, k, v, bias, scale)


def _ragged(q: Tensor, entries: Entries, scale: float) -> tuple[Tensor, Tensor]:
    """Heads of other lengths, one by one: what a head gives depends on no other, so a rank that has
    some of the heads computes the same bits."""
    parts = []
    for own, (a, n) in zip(q, entries.spans, strict=True):
        if n == 0:  # the fused kernel divides by the number of entries
            parts.append((torch.zeros_like(own), own.new_full(own.shape[:1], -torch.inf)))
            continue
        bias = None if entries.bias is None else entries.bias[a : a + n]
        parts.append(_one_head(own, entries.k[a : a + n], entries.v[a : a + n], bias, scale))
    return torch.stack([o for o, _ in parts]), torch.stack([lse.float() for _, lse in parts])


def _products(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """`q [B, n, D]` over `k, v [B, N, D]` by batched products, the logits materialized.

    `bias [B, N]` is added to them. Returns `o [B, n, D]`, `lse [B, n]`.
    """
    logits = torch.bmm(q * scale, k.transpose(1, 2))
    if bias is not None:
        logits += bias[:, None]
    weights = logits.softmax(dim=-1)
    lse = logits.amax(dim=-1) - weights.amax(dim=-1).log()
    return torch.bmm(weights, v), lse


def _fused(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """The same by the fused kernel."""
    mask = None if bias is None else bias[:, None, None]
    q, k, v = q[:, None], k[:, None], v[:, None]
    o, lse = FUSED_CPU(q, k, v, 0.0, False, attn_mask=mask, scale=scale)
    return o[:, 0], lse[:, 0]


def _one_head(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """`q [n, D]` over `k, v [N, D]` of one head, `bias [N]`; long ones in a piece per thread.

    Neither way shares out the entries of one head by itself.
    """
    (queries, dim), entries = q.shape, k.shape[0]
    attend = _products if _few(q) else _fused
    pieces = torch.get_num_threads() if queries <= BLOCK and entries * dim > PIECE else 1
    step = entries // max(min(pieces, entries * dim // PIECE), 1)
    parts: list[tuple[Tensor, Tensor]] = []
    for a, b in ((0, entries - entries % step), (entries - entries % step, entries)):
        if a == b:
            continue
        shape = (-1, min(step, b - a))
        cut_k, cut_v = k[a:b].view(*shape, dim), v[a:b].view(*shape, dim)
        mask = None if bias is None else bias[a:b].view(shape)
        o, lse = attend(q.expand(len(cut_k), -1, -1), cut_k, cut_v, mask, scale)
        parts += zip(o, lse, strict=True)
    if len(parts) == 1:
        return parts[0]
    o, lse = combine([(o[:, None], lse[:, None]) for o, lse in parts])
    return o[:, 0].to(q.dtype), lse[:, 0]


def _few(q: Tensor) -> bool:
    """Whether queries `[..., n, D]` of a head are better taken by products."""
    return q.dtype == torch.float32 and q.shape[-2] <= FEW


def plain_attend(
    q: Tensor, entries: Entries, scale: float, cap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`q [T, H*G, D]` over all of `entries`, the logits materialized in fp32, for any device.

    Logits, and keys and values in fp32, are at most `PLAIN_VALUES` numbers at once. The host waits
    for nothing: places and lengths that only the device knows become a mask. Heads of one length
    go together, others one by one.
    """
    if entries.bias is None and even(entries.spans):
        live = None
        if entries.bounds:
            (first, _), *others = entries.spans
            step = others[0][0] - first if others else 0
            every = torch.arange(len(entries.spans), dtype=torch.int32, device=q.device)
            live = _live(entries.start - (every * step + first), entries.length)
        k, v = (dense(store, entries.spans) for store in (entries.k, entries.v))
        return _visible(q, k, v, live, None, scale, cap)
    group = q.shape[1] // len(entries.spans)
    parts = []
    for head, (a, n) in enumerate(entries.spans):
        own = q[:, head * group : (head + 1) * group]
        k, v = entries.k[None, a : a + n], entries.v[None, a : a + n]
        one = slice(head, head + 1)
        live = _live(entries.start[one] - a, entries.length[one]) if entries.bounds else None
        bias = None if entries.bias is None else entries.bias[None, a : a + n]
        parts.append(_visible(own, k, v, live, bias, scale, cap))
    return torch.cat([o for o, _ in parts], 1), torch.cat([lse for _, lse in parts], 1)


def _live(first: Tensor, length: Tensor) -> Tensor:
    """From and to, `[H, 2]`, of `length [H]` entries from the `first [H]` of a head's store on."""
    return torch.stack((first, first + length), dim=1)


def plain_causal(
    q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`q [T, H*G, D]` over `k, v [H, T, D]`, query t sees entries 0..t."""
    tokens, query_heads, _ = q.shape
    step, parts = max(1, PLAIN_VALUES // (query_heads * tokens)), []
    for a in range(0, tokens, step):
        b = min(a + step, tokens)
        parts.append(dense_attention(q[a:b], k[:, :b], v[:, :b], scale, causal=True, cap=cap))
    return torch.cat([o for o, _ in parts]), torch.cat([lse for _, lse in parts])


def _visible(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    live: Tensor | None,
    bias: Tensor | None,
    scale: float,
    cap: float,
) -> tuple[Tensor, Tensor]:
    """`q [T, H*G, D]` over entries `live [H, 2]`, from and to, of `k, v [H, N, D]`; None: all."""
    if live is not None:
        entry = torch.arange(k.shape[1], device=k.device)
        hidden = (entry < live[:, :1]) | (entry >= live[:, 1:])  # [H, N]
        # what was never written may be NaN
        k, v = (store.masked_fill(hidden[..., None], 0.0) for store in (k, v))
        every = torch.zeros_like(hidden, dtype=torch.float32) if bias is None else bias
        bias = every.masked_fill(hidden, -torch.inf)
    heads, entries, dim = k.shape
    group = q.shape[1] // heads
    together = max(1, PLAIN_VALUES // max(1, entries * dim))  # heads whose numbers are in fp32
    found = []
    for first in range(0, heads, together):
        some = slice(first, first + together)
        own = q[:, first * group : (first + together) * group]
        step = max(1, PLAIN_VALUES // max(1, own.shape[1] * entries))
        added = None if bias is None else bias[some]
        parts = [
            dense_attention(part, k[some], v[some], scale, causal=False, bias=added, cap=cap)
            for part in own.split(step)
        ]
        found.append([torch.cat(each) for each in zip(*parts, strict=True)])
    o, lse = (torch.cat(each, dim=1) for each in zip(*found, strict=True))
    return o, lse
