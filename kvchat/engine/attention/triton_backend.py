"""Attention by our Triton kernels: ragged, biased, packed and causal entries, in several sets."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kvchat.engine.attention.entries import Call, Entries
from kvchat.kernels import attention as kernels
from kvchat.kernels import tiles

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class TritonBackend:
    """A `JointBackend`: one launch over all entries of a layer, one that joins what it found."""

    name = "triton"
    cap = 0.0

    def can(self, call: Call) -> str | None:
        """Why not, or None."""
        if call.device != "cuda" and not tiles.INTERPRETED:
            return f"runs on cuda, not on {call.device}"
        if call.dtype not in DTYPES:
            return f"takes {', '.join(str(kind) for kind in DTYPES)}"
        if call.dim > kernels.MAX_DIM:
            return f"takes heads of up to {kernels.MAX_DIM}"
        if call.group > kernels.MAX_GROUP:
            return f"takes up to {kernels.MAX_GROUP} query heads per KV head, not {call.group}"
        return None

    def attend(self, q: Tensor, entries: Entries, scale: float) -> tuple[Tensor, Tensor]:
        return kernels.ragged_attention(q, [entries], scale)

    def causal(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        heads, tokens, dim = k.shape
        spans = tuple((h * tokens, tokens) for h in range(heads))
        start = torch.arange(heads, dtype=torch.int32, device=q.device) * tokens
        length = torch.full_like(start, tokens)
        flat = (k.reshape(-1, dim), v.reshape(-1, dim))
        return kernels.ragged_attention(
            q, [Entries(*flat, start, length, spans)], scale, causal=True
        )

    def joint(
        self,
        q: Tensor,
        parts: Sequence[Entries],
        scale: float,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        return kernels.ragged_attention(q, parts, scale, causal=True, dtype=dtype)
