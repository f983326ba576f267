"""The tensors of a GGUF file: mapped, turned into numbers slice by slice, under our names."""

import re
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from kvchat.engine.gguf.blocks import Block
from kvchat.engine.gguf.file import GGUF, TensorInfo
from kvchat.engine.gguf.quants import groups, numbers
from kvchat.files import MappedFile

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LAYER = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "attention_output_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "mlp_output_norm",
}
POSITIONS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
COMPUTED = re.compile(r"blk\.\d+\.attn_rot_embd\.weight")  # of old files: plain frequencies


class Packed:
    """A matrix `[out, in]` in blocks along its rows; slices of it are numbers."""

    def __init__(self, rows: Tensor, block: Block, device: torch.device | None = None):
        self.rows, self.block = rows, block  # uint8 [out, bytes], in host memory
        self.device = device or rows.device  # where slices are given

    @property
    def shape(self) -> tuple[int, int]:
        """`[out, in]`."""
        return len(self.rows), self.rows.shape[1] // self.block.size * self.block.values

    def to(self, device: torch.device) -> "Packed":
        """The same, with slices on a device."""
        return Packed(self.rows, self.block, device)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice) -> Tensor:
        part = self.rows[rows]
        found = numbers(self.block.name, part.reshape(-1, self.block.size))
        return found.view(len(part), -1).to(self.device)

    def taken(self, rows: Tensor | slice) -> "Packed":
        """Some of the rows, in blocks as they are."""
        return Packed(self.rows[rows], self.block, self.device)

    def groups(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Codes `[n, in]`, scales and minima `[n, in/32]` of some rows; see `quants.groups`."""
        part = self.rows[rows]
        found = groups(self.block.name, part.reshape(-1, self.block.size))
        codes, scale, low = (each.view(len(part), -1).to(self.device) for each in found)
        return codes, scale, low


def our_name(name: str, names: frozenset[str]) -> str | None:
    """What a tensor is called in our decoder, of a file with these `names`; None: nothing there.

    Where a file has no gate, its `ffn_up` is both, as in Phi-3 and GLM-4.
    """
    if name in POSITIONS or COMPUTED.fullmatch(name):
        return None
    if (found := LAYER.fullmatch(name)) is None or found[2] not in PARTS:
        return NAMES.get(name, name)
    part = PARTS[found[2]]
    if part == "mlp.up_proj" and f"blk.{found[1]}.ffn_gate.weight" not in names:
        part = "mlp.gate_up_proj"
    return f"model.layers.{found[1]}.{part}.{found[3]}"


def read(info: TensorInfo) -> Tensor | Packed:
    """A tensor, mapped: plain numbers in their shape, or a matrix in blocks; of a vector in blocks
    the numbers."""
    data = torch.frombuffer(
        _mapped(info.path).data, dtype=torch.uint8, count=info.size, offset=info.offset
    )
    if info.block.name in PLAIN:
        return data.view(PLAIN[info.block.name]).view(info.shape)
    if len(info.shape) == 1:  # no matrix: small, and wanted as numbers
        return numbers(info.block.name, data.view(-1, info.block.size)).view(info.shape)
    return Packed(data.view(info.shape[0], -1), info.block)


@cache
def _mapped(path: Path) -> MappedFile:
    return MappedFile(path)


def forget(info: TensorInfo) -> None:
    """Give back the memory of a tensor that was read, until it is used again."""
    _mapped(info.path).give_back(info.offset, info.size)


def release() -> None:
    """Forget the files; tensors that are still used keep theirs."""
    _mapped.cache_clear()


def tensors_of(gguf: GGUF) -> dict[str, TensorInfo]:
    """The tensors of a file by our names."""
    names = frozenset(gguf.tensors)
    found = {our_name(name, names): info for name, info in gguf.tensors.items()}
    return {name: info for name, info in found.items() if name is not None}
