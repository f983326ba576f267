"""How much sooner a cached document is ready than a new one: `python benchmarks/reopen.py`.

Ready means that the next token of a question could be fed. Reopening is what the program does: the
fingerprint, mapping, every check, the probe. Pairs are interleaved; a line of JSON comes last.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from kvchat.engine.events import drain
from kvchat.engine.loading import load_engine
from kvchat.engine.methods.build import parse_method
from kvchat.engine.model.read import load_config
from kvchat.engine.session import Session
from kvchat.engine.store import cached_document
from kvchat.engine.store.identity import Identity, fingerprint
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.eval.case import Draw
from kvchat.eval.tasks import TASKS
from kvchat.hub.find import demo_model
from kvchat.machine import resources as machine


def main() -> None:
    """Read and reopen the same document, one after the other."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tokens", type=int, default=16384)
    options.add_argument("--method", default="adakv")
    options.add_argument("--pairs", type=int, default=5)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    folder = demo_model().path
    engine = drain(load_engine(folder, load_config(folder), device="cpu"))
    session = Session(engine, Dialogue(Tokenizer.load(folder)))
    text = TASKS["world"](Draw(10**12, chosen.tokens)).document
    ids = session.dialogue.document(text)
    method = parse_method(chosen.method)
    took: dict[str, list[float]] = {"read": [], "save": [], "reopen": []}
    with tempfile.TemporaryDirectory() as place:
        for _ in range(chosen.pairs):
            begin = perf_counter()
            drain(session.prefill(ids, method))
            read = perf_counter()
            name = fingerprint(Identity(engine, folder).parts(ids, method))
            path, layers = Path(place) / name, cached_document.layers_of(session.cache, len(ids))
            assert layers is not None
            cached_document.save(path, engine, layers, ids, name, {})
            saved = perf_counter()
            name = fingerprint(Identity(engine, folder).parts(ids, method))
            cache = cached_document.load(Path(place) / name, engine, ids, name)
            took["read"].append(read - begin)
            took["save"].append(saved - read)
            took["reopen"].append(perf_counter() - saved)
            print("  ".join(f"{what} {times[-1]:.3f} s" for what, times in took.items()))
        size = path.stat().st_size
    assert cache.position == len(ids)
    ratios = [a / b for a, b in zip(took["read"], took["reopen"], strict=True)]
    print(
        json.dumps(
            {
                "tokens": len(ids),
                "method": chosen.method,
                "pairs": chosen.pairs,
                **{f"{what}_s": round(median(times), 4) for what, times in took.items()},
                "ratio": round(median(ratios), 1),
                "file_bytes": size,
                "threads": chosen.threads,
                "cpu": machine.processor(),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
