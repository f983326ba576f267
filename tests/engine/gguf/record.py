"""Records what llama.cpp makes of the texts and vocabularies in `recorded.json`.

    pip install llama-cpp-python gguf
    python -m tests.engine.gguf.record [MODEL.gguf ...]

Ids of a text are written once for all cases that agree on it: `ids` has the different lists of
each text; `of` has cases that agree on all texts, and a letter for each text: which list is theirs.
Of real models, checksums of the ids are kept in `models.json`, by a checksum of their tokens.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp

from kvchat.engine.gguf.file import GGUF
from tests.engine.gguf.files import (
    LETTERS,
    MODELS,
    RECORDED,
    case_fields,
    checksum,
    ends_fields,
    load,
    write,
)


def model(folder: Path, fields: dict[str, Any]) -> llama_cpp.Llama:
    path = write(folder / "small.gguf", fields)
    return llama_cpp.Llama(str(path), vocab_only=True, verbose=False)


def record_models(paths: list[Path]) -> None:
    texts = [text.encode() for text in load()["texts"]]
    found = {}
    for path in paths:
        llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        found[checksum(GGUF(path)["tokenizer.ggml.tokens"])] = {
            "name": path.stem,
            "ends": [
                number
                for number in range(llama.n_vocab())
                if llama_cpp.llama_vocab_is_eog(llama._model.vocab, number)
            ],
            "ids": [
                checksum(
                    [llama.tokenize(text, add_bos=False, special=how) for how in (False, True)]
                )
                for text in texts
            ],
        }
    MODELS.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def main() -> None:
    kept = json.loads(RECORDED.read_text(encoding="utf-8"))
    recorded = load()
    texts = [text.encode() for text in kept["texts"]]
    lists: list[list[list[int]]] = [[] for _ in texts]
    of: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, case in recorded["cases"].items():
            llama = model(Path(folder), case_fields(recorded, case))
            # a template is trusted: special tokens in it are parsed
            for trusted in (False, True):
                chosen = ""
                for text, known in zip(texts, lists, strict=True):
                    ids = llama.tokenize(text, add_bos=False, special=trusted)
                    if ids not in known:
                        known.append(ids)
                    chosen += LETTERS[known.index(ids)]
                of.setdefault(chosen, []).append(f"{name}, trusted" if trusted else name)
        for case in kept["ends"]:
            llama = model(Path(folder), ends_fields(case))
            vocabulary, names = llama._model.vocab, case["names"]
            case["found"] = [
                name
                for number, name in enumerate(names)
                if llama_cpp.llama_vocab_is_eog(vocabulary, number)
            ]
    kept["ids"], kept["of"] = lists, [[names, chosen] for chosen, names in of.items()]
    kept |= {"llama-cpp-python": llama_cpp.__version__}
    RECORDED.write_text(json.dumps(kept, ensure_ascii=False, separators=(",", ":")), "utf-8")


if __name__ == "__main__":
    record_models([Path(path) for path in sys.argv[1:]]) if sys.argv[1:] else main()
