"""Small GGUF files of vocabularies only, which llama.cpp reads too."""

import json
import string
import zlib
from pathlib import Path
from typing import Any

from gguf import GGUFWriter

# texts in many scripts, vocabularies that merge across words, and what llama.cpp made of them
RECORDED = Path(__file__).with_name("recorded.json")
MODELS = Path(__file__).with_name("models.json")  # the same of real models, as checksums
LETTERS = string.ascii_letters + string.digits  # which of a text's lists of ids
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
WRITES = {str: "add_string", bool: "add_bool", int: "add_uint32", list: "add_array"}


def load() -> dict[str, Any]:
    """What is recorded; the byte-level vocabulary with its tokens written out."""
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    bpe = recorded["vocabularies"]["gpt2"]
    merged = ["".join(merge.split(" ")) for merge in bpe["merges"]]
    bpe["tokens"] = [*bpe["alphabet"], *merged, *bpe.pop("others")]
    bpe["token_type"] = [NORMAL] * (len(bpe["tokens"]) - len(bpe["last"])) + bpe["last"]
    del bpe["alphabet"], bpe["last"]
    return recorded


def recorded_ids(recorded: dict[str, Any]) -> dict[str, list[list[int]]]:
    """Ids of each text by case; `, trusted` behind its name if special tokens were parsed."""
    return {
        name: [lists[LETTERS.index(k)] for lists, k in zip(recorded["ids"], letters, strict=True)]
        for names, letters in recorded["of"]
        for name in names
    }


def checksum(value: Any) -> str:
    """Eight hexadecimal digits of what JSON has for `value`."""
    return f"{zlib.crc32(json.dumps(value).encode()):08x}"


def write(path: Path, fields: dict[str, Any]) -> Path:
    """A file with `tokenizer.ggml.` fields, and others by their full names with a dot in front."""
    writer = GGUFWriter(path, "llama")
    for name, value in fields.items():
        if value is not None:
            full = name[1:] if name.startswith(".") else f"tokenizer.ggml.{name}"
            getattr(writer, WRITES[type(value)])(full, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def case_fields(recorded: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """Fields of a recorded case: a vocabulary and what differs from it."""
    model = case.get("model", "gpt2")
    return {"model": model, **recorded["vocabularies"][model], **case}


def ends_fields(case: dict[str, Any]) -> dict[str, Any]:
    """Fields of a vocabulary that begins with the names of a case about end tokens."""
    names = case["names"]
    kinds = case.get("kinds", [CONTROL] * len(names))
    ids = {f"{role}_token_id": number for role, number in case.get("ids", {}).items()}
    return {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*names, "p", "q", "pq", "end"],
        "token_type": [*kinds, NORMAL, NORMAL, NORMAL, CONTROL],
        "merges": ["p q"],
        "eos_token_id": len(names) + 3,
        "bos_token_id": len(names) + 3,
        **ids,
    }
