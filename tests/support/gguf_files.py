"""GGUF files made by hand: a header with metadata and tensors of zeros, as small as can be."""

import struct
from pathlib import Path
from typing import Any

F32, F16, Q8_0 = 0, 1, 8
BYTES = {F32: (1, 4), F16: (1, 2), Q8_0: (32, 34)}  # values and bytes of a block


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(given: Any) -> bytes:
    """A metadata value with its type: bool, int (32 bits), float, str, or a list of one kind."""
    kinds = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}
    if isinstance(given, list):
        each = [value(item) for item in given]
        kind = each[0][:4] if each else struct.pack("<I", 8)
        items = b"".join(item[4:] for item in each)
        return struct.pack("<I", 9) + kind + struct.pack("<Q", len(given)) + items
    if isinstance(given, str):
        return struct.pack("<I", 8) + text(given)
    number, letter = kinds[type(given)]
    return struct.pack(f"<I{letter}", number, given)


def write(
    path: Path,
    fields: dict[str, Any],
    tensors: dict[str, tuple[int, ...]] | None = None,
    kind: int = F16,
) -> Path:
    """A file with tensors of zeros; shapes are torch's, the last divides into blocks."""
    tensors = tensors or {}
    count, size = BYTES[kind]
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    header += b"".join(text(name) + value(given) for name, given in fields.items())
    offset = 0
    for name, shape in tensors.items():
        dims = b"".join(struct.pack("<Q", n) for n in reversed(shape))
        header += text(name) + struct.pack("<I", len(shape)) + dims
        header += struct.pack("<IQ", kind, offset)
        values = 1
        for n in shape:
            values *= n
        offset += -(-(values // count * size) // 32) * 32
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + bytes(-len(header) % 32) + bytes(offset))
    return path


def llama(
    path: Path, *, layers: int = 2, window: int = 4096, chat: bool = True, **more: Any
) -> Path:
    """A tiny Llama that loads nowhere and is described everywhere."""
    hidden, inner, vocabulary = 64, 128, 96
    fields = {
        "general.architecture": "llama",
        "llama.block_count": layers,
        "llama.context_length": window,
        "llama.embedding_length": hidden,
        "llama.feed_forward_length": inner,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": vocabulary,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [f"t{n}" for n in range(vocabulary)],
    } | ({"tokenizer.chat_template": "{{ messages }}"} if chat else {})
    kv = hidden // 2
    shapes = {"token_embd.weight": (vocabulary, hidden), "output_norm.weight": (hidden,)}
    for n in range(layers):
        shapes |= {
            f"blk.{n}.attn_norm.weight": (hidden,),
            f"blk.{n}.attn_q.weight": (hidden, hidden),
            f"blk.{n}.attn_k.weight": (kv, hidden),
            f"blk.{n}.attn_v.weight": (kv, hidden),
            f"blk.{n}.attn_output.weight": (hidden, hidden),
            f"blk.{n}.ffn_norm.weight": (hidden,),
            f"blk.{n}.ffn_gate.weight": (inner, hidden),
            f"blk.{n}.ffn_up.weight": (inner, hidden),
            f"blk.{n}.ffn_down.weight": (hidden, inner),
        }
    return write(path, fields | more, shapes)
