"""The plain-torch specification of every kernel: short, exact in fp32, not tuned.

Letters: T new tokens, N entries of a head, H KV heads, G query heads per KV head, D head dim, R
entries of a flat store, W window queries; m sub-spaces of size d with C centroids each. Query head
`h*G + g` reads KV head `h`.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kvchat.kernels.entries import Entries
from kvchat.kernels.reference_block import (
    add_rms_norm as add_rms_norm,
)
from kvchat.kernels.reference_block import (
    geglu as geglu,
)
from kvchat.kernels.reference_block import (
    int4_numbers as int4_numbers,
)
from kvchat.kernels.reference_block import (
    int4_product as int4_product,
)
from kvchat.kernels.reference_block import (
    int8_product as int8_product,
)
from kvchat.kernels.reference_block import (
    place_entries as place_entries,
)
from kvchat.kernels.reference_block import (
    rms_norm as rms_norm,
)
from kvchat.kernels.reference_block import (
    rope as rope,
)
from kvchat.kernels.reference_block import (
    swiglu as swiglu,
)
from kvchat.kernels.reference_pq import (
    cell_worth as cell_worth,
)
from kvchat.kernels.reference_pq import (
    gather_entries as gather_entries,
)
from kvchat.kernels.reference_pq import (
    pq_assign as pq_assign,
)
from kvchat.kernels.reference_pq import (
    pq_decode as pq_decode,
)
from kvchat.kernels.reference_pq import (
    pq_fetch as pq_fetch,
)
from kvchat.kernels.reference_pq import (
    pq_rank as pq_rank,
)
from kvchat.kernels.reference_pq import (
    pq_score as pq_score,
)
from kvchat.kernels.reference_pq import (
    pq_select as pq_select,
)
from kvchat.kernels.reference_pq import (
    pq_table as pq_table,
)
from kvchat.kernels.reference_pq import (
    pq_worth as pq_worth,
)

NEGATIVE = float("-inf")


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    *,
    causal: bool,
    bias: Tensor | None = None,
    cap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of `q [T, H*G, D]` over `k, v [H, N, D]`, with its log-sum-exp.

    `causal` aligns the last query with the last entry (bottom-right): query t sees the first
    `N - T + t + 1` entries. Scaled logits are capped, see `capped`; `bias [H, N]` is added to them.
    Returns `o [T, H*G, D]` and `lse [T, H*G]`, both fp32. A query that sees no entry gets o = 0 and
    lse = -inf, the neutral element of `combine`.
    """
    tokens, query_heads, dim = q.shape
    heads, entries, _ = k.shape
    grouped = q.float().view(tokens, heads, query_heads // heads, dim)
    logits = capped(torch.einsum("thgd,hnd->thgn", grouped, k.float()) * scale, cap)
    if bias is not None:
        logits = logits + bias[None, :, None, :]
    if causal:
        last = torch.arange(tokens, device=q.device)[:, None] + entries - tokens
        hidden = torch.arange(entries, device=q.device)[None] > last  # [T, N]
        logits = logits.masked_fill(hidden[:, None, None], NEGATIVE)
    lse = torch.logsumexp(logits, dim=-1)  # [T, H, G]
    weights = torch.exp(logits - lse[..., None]).nan_to_num(0.0)
    o = torch.einsum("thgn,hnd->thgd", weights, v.float())
    return o.reshape(tokens, query_heads, dim), lse.reshape(tokens, query_heads)


def capped(logits: Tensor, cap: float) -> Tensor:
    """`cap * tanh(logits / cap)` (Gemma 2, arXiv 2408.00118); unchanged if the cap is 0."""
    return torch.tanh(logits / cap) * cap if cap else logits


def windowed_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int, cap: float = 0.0
) -> Tensor:
    """Causal attention of `q [T, H*G, D]` over the newest `window` entries that each query sees.

    `k, v [H, N, D]`; the last query belongs to the last entry. Returns `o [T, H*G, D]`.
    """
    tokens, entries = len(q), k.shape[1]
    own = torch.arange(entries - tokens, entries, device=q.device)[:, None]
    place = torch.arange(entries, device=q.device)[None]
    seen = (place <= own) & (place > own - window)  # [T, N]
    if not cap:
        queries, keys, values = q.transpose(0, 1)[None], k[None], v[None]
        attend = torch.nn.functional.scaled_dot_product_attention
        o = attend(queries, keys, values, seen, scale=scale, enable_gqa=True)
        return o[0].transpose(0, 1)
    heads, _, dim = k.shape
    grouped = q.float().view(tokens, heads, -1, dim)
    logits = capped(torch.einsum("thgd,hnd->thgn", grouped, k.float()) * scale, cap)
    weights = logits.masked_fill(~seen[:, None, None], -torch.inf).softmax(dim=-1)
    return torch.einsum("thgn,hnd->thgd", weights, v.float()).reshape(q.shape)


def ragged_attention(
    q: Tensor, parts: Sequence[Entries], scale: float, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention of `q [T, H*G, D]` over the entries of all `parts` together.

    Every entry is visible; with `causal` the queries are those of the newest T entries of the last
    part, and query t does not see the entries after its own. Returns `o [T, H*G, D]`, `lse [T,
    H*G]`, fp32.
    """
    answers = []
    for number, part in enumerate(parts):
        entries = unpacked(part, q.dtype)
        group = q.shape[1] // len(entries.start)
        last = causal and number == len(parts) - 1
        heads = []
        spans = zip(entries.start.tolist(), entries.length.tolist(), strict=True)
        for head, (a, n) in enumerate(spans):
            queries = q[:, head * group : (head + 1) * group]
            bias = None if entries.bias is None else entries.bias[None, a : a + n]
            k, v = entries.k[None, a : a + n], entries.v[None, a : a + n]
            heads.append(dense_attention(queries, k, v, scale, causal=last, bias=bias))
        answers.append(
            (torch.cat([o for o, _ in heads], 1), torch.cat([lse for _, lse in heads], 1))
        )
    return combine(answers)


def unpacked(entries: Entries, dtype: torch.dtype) -> Entries:
    """Entries in few bits as numbers of `dtype`; others as they are."""
    if (p := entries.packing) is None:
        return entries
    codes = unpack(entries.k, p.bits).unflatten(0, (len(p.k_scale), -1))  # [R/32, 32, D]
    k = torch.addcmul(p.k_zero[:, None].float(), codes.float(), p.k_scale[:, None].float())
    codes = unpack(entries.v, p.bits).unflatten(1, (p.v_scale.shape[1], -1))
    v = dequantize(codes, p.v_scale, p.v_zero, dtype)
    return replace(entries, k=k.flatten(0, 1).to(dtype), v=v.flatten(1), packing=None)


def combine(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Exact attention over a union of entry sets from the attention over each of them.

    `parts` are `(o [T, H*G, D], lse [T, H*G])`; with `s` the sets,
    `o = sum_s softmax_s(lse_s) * o_s` and `lse = log sum_s exp(lse_s)`, in fp32. The shares go by
    fp64: torch takes the last few numbers of a tensor by another exponential, and which those are
    depends on how many heads stand beside each other.
    """
    if len(parts) == 1:
        o, lse = parts[0]
        return o.float(), lse
    lses = torch.stack([lse for _, lse in parts]).double()  # [S, T, H*G]
    lse = torch.logsumexp(lses, dim=0).float()
    o = torch.zeros_like(parts[0][0], dtype=torch.float32)
    weights = torch.softmax(lses, dim=0).nan_to_num(0.0).float()  # all parts empty: 0
    for (part, _), weight in zip(parts, weights, strict=True):
        o.addcmul_(part.float(), weight[..., None])
    return o, lse


def column_mass(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    seen: Tensor,
    scale: float,
    power: int = 1,
    cap: float = 0.0,
) -> Tensor:
    """Attention mass that each key gets from all queries together, per query head.

    `q [W, H*G, D]` with the known `lse [W, H*G]` of all entries that they attend to, `k [H, N, D]`
    of which query w sees the first `seen[w]` (int64 `[W]`). Returns `[H*G, N]` fp32: `sum_w exp(q_w
    . k_n * scale - lse_w) ** power`, 0 where unseen. With power 1 a head's total is W minus the
    mass on entries outside `k` (H2O, arXiv 2306.14048; for a window of last queries SnapKV, arXiv
    2404.14469, section 4); power 2 is the metric of KV-Compress (arXiv 2410.00161).
    """
    window, query_heads, dim = q.shape
    heads, entries, _ = k.shape
    grouped = q.float().view(window, heads, query_heads // heads, dim)
    logits = capped(torch.einsum("whgd,hnd->whgn", grouped, k.float()) * scale, cap)
    mass = torch.exp(power * (logits - lse.view(window, heads, -1, 1)))
    hidden = torch.arange(entries, device=k.device) >= seen[:, None]  # [W, N]
    mass.masked_fill_(hidden[:, None, None], 0.0)
    return mass.sum(dim=0).reshape(query_heads, entries)


def window_mass(
    q: Tensor, k: Tensor, lse: Tensor, seen: Tensor, scale: float, cap: float = 0.0
) -> Tensor:
    """Mean mass of each key over queries and over the query heads of a group, `[H, N]` fp32."""
    mass = column_mass(q, k, lse, seen, scale, cap=cap)
    return mass.view(len(k), -1, k.shape[1]).mean(dim=1) / len(q)


def merge_entries(entries: Tensor, weight: Tensor, lengths: Tensor) -> Tensor:
    """Weighted sums of consecutive entries: `entries [n, D]` in runs of `lengths [S]` to `[S, D]`.

    `weight [n]` (fp32); sums are fp32 and taken in order, so they are the same every time; the
    result has the dtype of `entries` (KVMerger, arXiv 2407.08454).
    """
    weighted = entries.float() * weight[:, None]
    return torch.segment_reduce(weighted, "sum", lengths=lengths, axis=0).to(entries.dtype)


def quantize(x: Tensor, bits: int, meta: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Round groups `x [..., g]` to `bits` bits: codes `[..., g]` (uint8), scale and zero `[...]`.

    `zero = min`, `scale = (max - min) / (2^bits - 1)`, both in dtype `meta`;
    `code = round((x - zero) / scale)`, so the error is at most `scale / 2` where rounding the
    scale has not shortened the range; a constant group is exact but for its zero (KIVI,
    arXiv 2402.02750, section 3.2).
    """
    wide, levels = x.float(), 2**bits - 1
    zero = wide.amin(dim=-1).to(meta)
    scale = ((wide.amax(dim=-1) - zero.float()) / levels).to(meta)
    step = scale.float().where(scale > 0, 1.0)[..., None]
    codes = ((wide - zero.float()[..., None]) / step).round_().clamp_(0, levels)
    return codes.to(torch.uint8), scale, zero


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
    """`codes [..., g] * scale + zero` in `dtype`; the inverse of `quantize` up to rounding."""
    return torch.addcmul(zero.float()[..., None], codes.float(), scale.float()[..., None]).to(dtype)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes `[..., n]` (uint8) side by side in bytes `[..., n * bits / 8]`.

    Element j of a byte is at its bits `[bits * j, bits * (j + 1))`, the lowest first.
    """
    each = 8 // bits
    parts = codes.unflatten(-1, (-1, each))
    shifts = torch.arange(each, dtype=torch.uint8, device=codes.device) * bits
    return (parts << shifts).sum(dim=-1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `pack`: `[..., m]` bytes to `[..., m * 8 / bits]` codes."""
    shifts = torch.arange(8 // bits, dtype=torch.uint8, device=packed.device) * bits
    return ((packed[..., None] >> shifts) & (2**bits - 1)).flatten(-2)
