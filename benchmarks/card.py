"""Writing speed on a card: recorded steps, single steps, transformers on the same weights.

    python benchmarks/card.py [--pairs 7] [--shapes 1B 8B] [--rows 4096 32768 131072]

Needs a CUDA card; has never been run on one. Random weights, caches filled with random rows: all,
and a tenth that is uneven over the heads. Writes docs/bench/cards/CARD-decode.json.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from itertools import islice
from time import perf_counter

import torch
from decode import SHAPE, cache_of, dynamic_cache, ours, theirs
from pairs import FOLDER
from transformers import DynamicCache

from kvchat import __version__
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.decode.loop import Writer
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.engine import Engine

SHAPES = {
    "1B": SHAPE,
    "8B": SHAPE
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
}
WARM, TOKENS = 4, 64  # the first ones record
Way = Callable[[], float]


def writing(engine: Engine, cache: KVCache, recorded: bool) -> Way:
    """Seconds per token of an engine, over a cache that is cut back after it."""
    writer = engine.writer if recorded else Writer(engine.model, refused="single steps")

    def run() -> float:
        engine.writer, before = writer, cache.position
        logits = torch.zeros(engine.config.vocab_size, device=engine.device)
        seconds = timed(engine.decode(cache, logits, Sampling()))
        cache.truncate(before)
        return seconds

    return run


def writing_there(model, cache: DynamicCache, device: torch.device) -> Way:
    """Seconds per token of transformers, likewise."""

    @torch.inference_mode()
    def tokens():
        ids = torch.zeros(1, 1, dtype=torch.int64, device=device)
        while True:
            found = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids = found.logits[:, -1].argmax(-1, keepdim=True)
            yield int(ids)

    def run() -> float:
        before = cache.get_seq_length()
        seconds = timed(tokens())
        cache.crop(before - cache.get_seq_length())  # so many fewer
        return seconds

    return run


def timed(tokens) -> float:
    """Seconds per token; an engine gives a token when it is there."""
    list(islice(tokens, WARM))
    begin = perf_counter()
    list(islice(tokens, TOKENS))
    return (perf_counter() - begin) / TOKENS


def read_bytes(engine: Engine) -> int:
    """Bytes of the weights that a token reads: of a table that is not the head too, one row."""
    model = engine.model
    table = sum(p.nbytes for p in model.model.embed_tokens.parameters())
    return engine.weights_bytes - (0 if engine.config.tie_word_embeddings else table)


def cells(shape: dict, rows: int, weights: str, device: torch.device) -> dict[str, dict]:
    """By way: what runs, and the bytes that a token has to read."""
    engine = ours(weights, shape, device)
    kept = {"all": cache_of(engine, rows), "10 %": cache_of(engine, rows, 0.1)}
    found = {}
    for share, cache in kept.items():
        read = read_bytes(engine) + cache.memory().total
        for recorded in (True, False):
            name = f"{share}, {'recorded' if recorded else 'single steps'}"
            found[name] = {"run": writing(engine, cache, recorded), "bytes": read}
    if weights == "auto":
        there = writing_there(theirs(engine, shape), dynamic_cache(engine, rows), device)
        read = read_bytes(engine) + rows * engine.kv_bytes(1)
        found["all, transformers"] = {"run": there, "bytes": read}
    return found


def measured(found: dict[str, dict], pairs: int, bandwidth: float) -> dict[str, dict]:
    """Tokens per second of every way, taken in turn, and the share of what bandwidth allows."""
    times: dict[str, list[float]] = {name: [] for name in found}
    for number in range(pairs + 1):
        for name, way in found.items():
            seconds = way["run"]()
            if number:
                times[name].append(seconds)
    return {
        name: {
            "tokens_per_s": round(1 / statistics.median(samples), 2),
            "share_of_limit": round(
                found[name]["bytes"] / bandwidth / statistics.median(samples), 3
            ),
        }
        for name, samples in times.items()
    }


def main() -> int:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--rows", nargs="*", type=int, default=[4096, 32768, 131072])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("card.py measures a CUDA card and there is none here", file=sys.stderr)
        return 7
    from kernels import limits  # imports triton

    card, (bandwidth, _) = torch.cuda.get_device_name(), limits(15)
    results: dict[str, dict] = {}
    for shape in options.shapes:
        for weights in ("auto", "int4"):
            for rows in options.rows:
                cell = f"{shape} {'bf16' if weights == 'auto' else weights}, {rows:,} rows"
                try:
                    found = cells(SHAPES[shape], rows, weights, torch.device("cuda"))
                    results[cell] = measured(found, options.pairs, bandwidth)
                except torch.OutOfMemoryError as error:
                    results[cell] = {"does not fit": {"why": str(error).partition(". ")[0]}}
                print(cell, json.dumps(results[cell], indent=1), flush=True)
    path = FOLDER / "cards" / f"{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}-decode.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"card": card, "kvchat": __version__, "torch": torch.__version__}
    path.write_text(json.dumps(known | {"bytes_per_s": bandwidth, "decode": results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
