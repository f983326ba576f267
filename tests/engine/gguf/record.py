"""Records what llama.cpp makes of the texts and vocabularies in `recorded.json`.

    pip install llama-cpp-python gguf
    python -m tests.engine.gguf.record

Ids of a text are written once for all cases that agree on it: `ids` has the different lists of
each text; `of` has cases that agree on all texts, and a letter for each text: which list is theirs.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp

from tests.engine.gguf.files import LETTERS, RECORDED, case_fields, ends_fields, load, write


def model(folder: Path, fields: dict[str, Any]) -> llama_cpp.Llama:
    path = write(folder / "small.gguf", fields)
    return llama_cpp.Llama(str(path), vocab_only=True, verbose=False)


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
    main()
