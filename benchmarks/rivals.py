"""The attention of our kernel by what torch has: SDPA, flex_attention, varlen_attn. Each function
makes what its way needs and returns the call alone; the last two are there if torch has them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kvchat.engine.attention.entries import dense
from kvchat.kernels.entries import Entries

try:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
except ImportError:
    flex_attention = None
try:
    from torch.nn.attention.varlen import varlen_attn  # torch 2.12; on CUDA only
except ImportError:
    varlen_attn = None

Way = Callable[[], object]


def one_query(q: Tensor, rows: Entries, scale: float) -> dict[str, Way]:
    """`q [1, H*G, D]` over ragged heads: padded to the longest, or each as a sequence."""
    longest, heads = max(n for _, n in rows.spans), len(rows.spans)
    k, v = rows.k.new_zeros(2, heads, longest, rows.k.shape[1])
    live = torch.zeros(heads, 1, longest, dtype=torch.bool, device=q.device)
    for head, (a, n) in enumerate(rows.spans):
        k[head, :n], v[head, :n], live[head, :, :n] = rows.k[a : a + n], rows.v[a : a + n], True
    grouped = q.view(heads, -1, q.shape[2])  # the queries of a KV head are rows
    ways: dict[str, Way] = {
        "SDPA, padded": lambda: F.scaled_dot_product_attention(
            grouped, k, v, attn_mask=live, scale=scale
        )
    }
    if flex := _flex(q.device):
        length = rows.length
        mask = create_block_mask(
            lambda b, h, i, j: j < length[h], None, heads, grouped.shape[1], longest, q.device
        )
        ways["flex, padded"] = lambda: flex(
            grouped[None], k[None], v[None], block_mask=mask, scale=scale
        )
    if _has_varlen(q.device):
        ends = torch.tensor([0, *(a + n for a, n in rows.spans)], dtype=torch.int32).to(q.device)
        each = torch.arange(heads + 1, dtype=torch.int32, device=q.device)
        ways["varlen"] = lambda: varlen_attn(
            grouped, rows.k[:, None], rows.v[:, None], each, ends, 1, longest,
            scale=scale, enable_gqa=True,
        )  # fmt: skip
    return ways


def chunk(q: Tensor, rows: Entries, scale: float) -> dict[str, Way]:
    """`q [T, H*G, D]`, the queries of the newest T rows of even heads, causal."""
    k, v = dense(rows.k, rows.spans), dense(rows.v, rows.spans)  # [H, N, D]
    (tokens, query_heads, _), (heads, count, _) = q.shape, k.shape
    before, queries = count - tokens, q.transpose(0, 1)[None]
    ways: dict[str, Way] = {}
    if before == 0:  # for more rows than queries its causal mask is another one
        wide = [x.repeat_interleave(query_heads // heads, 0)[None] for x in (k, v)]
        ways["SDPA"] = lambda: F.scaled_dot_product_attention(
            queries, *wide, is_causal=True, scale=scale
        )
    if flex := _flex(q.device):
        mask = create_block_mask(
            lambda b, h, i, j: j <= i + before, None, None, tokens, count, q.device
        )
        ways["flex"] = lambda: flex(
            queries, k[None], v[None], block_mask=mask, scale=scale, enable_gqa=True
        )
    if _has_varlen(q.device):
        ends = [torch.tensor([0, n], dtype=torch.int32).to(q.device) for n in (tokens, count)]
        flat = [x.transpose(0, 1).contiguous() for x in (k, v)]  # [N, H, D]
        ways["varlen"] = lambda: varlen_attn(
            q, *flat, *ends, tokens, count, scale=scale, window_size=(-1, 0), enable_gqa=True
        )
    return ways


def _flex(device: torch.device) -> Callable | None:
    """Compiled on a card; as it is elsewhere, for trying."""
    if flex_attention is None or device.type != "cuda":
        return flex_attention
    return torch.compile(flex_attention, dynamic=False)


def _has_varlen(device: torch.device) -> bool:
    return varlen_attn is not None and device.type == "cuda"
