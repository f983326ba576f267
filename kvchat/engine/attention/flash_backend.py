"""Prefill by the flash-attn package: causal attention over one dense store.

Checked against a stand-in for its interface, never against itself.
"""

from collections.abc import Sequence

import torch
from flash_attn import flash_attn_func
from torch import Tensor

from kvchat.engine.attention.entries import Call, Entries, dense


class FlashBackend:
    """flash-attn 2 aligns causal queries with the last keys (since 2.1), as prefill needs it."""

    name = "flash"

    def can(self, call: Call) -> str | None:
        """Why not, or None."""
        if call.kind != "joint" or call.parts > 1 or not call.even or call.bias or call.bits < 16:
            return "takes causal queries over one dense store"
        if call.tokens == 1:
            return "takes several queries: one is split over the keys elsewhere"
        if call.device != "cuda":
            return f"runs on cuda, not on {call.device}"
        if call.dtype not in (torch.bfloat16, torch.float16):
            return "takes bfloat16 and float16"
        if call.dim > 256 or call.dim % 8:
            return "takes heads of a multiple of 8, up to 256"
        return None

    def joint(
        self,
        q: Tensor,
        parts: Sequence[Entries],
        scale: float,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """See `JointBackend.joint`; the output is in the dtype of `q`."""
        stores, spans = (parts[0].k, parts[0].v), parts[0].spans
        k, v = (dense(store, spans).transpose(0, 1)[None] for store in stores)  # [1, N, H, D]
        o, lse, _ = flash_attn_func(
            q[None], k, v, softmax_scale=scale, causal=True, return_attn_probs=True
        )
        return o[0], lse[0].transpose(0, 1)  # lse [1, H*G, T]
