"""Speed of PQCache at the shape of one layer of an 8B model (8 KV heads of 128, 4 queries each).

    python benchmarks/pqcache.py decode --rows 32768,131072
    python benchmarks/pqcache.py clusters --tokens 8192

`decode`: attention of one token over random rows, full against N/20 rows retrieved (and a window of
N/20, at most 4,096, and 32 sinks), in pairs, one after the other. `clusters`: reading one layer,
and the part of it that K-means, coding and copying take. Prints JSON.
"""

import argparse
import json
import platform
import statistics
from time import perf_counter, process_time

import torch

from kvchat.engine.attention import backend
from kvchat.engine.budget import Budget
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.cache.tail import Tail
from kvchat.engine.devices import DTYPES
from kvchat.engine.engine import Engine
from kvchat.engine.events import drain
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.simple import Full
from kvchat.engine.model.hugging_face import interpret
from kvchat.engine.prefill.prefill import Compression
from kvchat.engine.weights.checkpoint import random_weights
from kvchat.machine import resources as machine

HEADS, GROUP, DIM = 8, 4, 128
SCALE = DIM**-0.5
LAYER = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS * GROUP,
    "num_key_value_heads": HEADS,
    "head_dim": DIM,
    "vocab_size": 1024,
    "max_position_embeddings": 2**17,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
}


def filled(method, keys: torch.Tensor, values: torch.Tensor) -> LayerCache:
    """A layer's cache after reading the rows `keys, values [H, N, D]`."""
    empty = keys.new_empty(0)
    none = torch.zeros(0, dtype=torch.long)
    given = Prefilled(keys, values, empty, empty, none, SCALE, layer=0, num_layers=1)
    layer = LayerCache(Tail(HEADS, DIM, keys.dtype, keys.device), backend())
    segment = method.compress(given)
    after = segment.span[1]
    layer.adopt(segment, keys[:, after:], values[:, after:])
    return layer


def clustered(rows: int, dtype: torch.dtype) -> torch.Tensor:
    """Random rows around 500 centres per head, `[H, rows, D]`."""
    centres = torch.randn(HEADS, 500, DIM)
    which = torch.randint(500, (HEADS, rows))
    noise = torch.randn(HEADS, rows, DIM).mul_(0.5)
    for head in range(HEADS):
        noise[head] += centres[head, which[head]]
    return noise.to(dtype)


def decode(rows: int, dtype: torch.dtype, repeat: int, spec: str, plain: bool) -> dict:
    """Milliseconds of one token's attention, full and retrieved, and their ratio."""
    torch.manual_seed(rows)
    keys = torch.randn(HEADS, rows, DIM).to(dtype) if plain else clustered(rows, dtype)
    values = torch.randn(HEADS, rows, DIM).to(dtype)
    full = filled(Full(), keys, values)
    begin = perf_counter()
    few = filled(parse_method(spec, Budget(fraction=0.1)), keys, values)
    made = perf_counter() - begin
    del keys, values
    assert isinstance(full.segments[0], FlatSegment)
    times: dict[str, list[float]] = {"full": [], "pqcache": []}
    busy: dict[str, list[float]] = {"full": [], "pqcache": []}
    for number in range(repeat + 2):
        q = torch.randn(1, HEADS * GROUP, DIM).to(dtype)
        new = torch.randn(2, HEADS, 1, DIM).to(dtype)
        for name, layer in (("full", full), ("pqcache", few)):
            layer.tail.append(*new)
            begin, working = perf_counter(), process_time()
            layer.attend(q, SCALE)
            took, worked = perf_counter() - begin, process_time() - working
            layer.settle(rows + number + 1)
            if number >= 2:  # warm
                times[name].append(1000 * took)
                busy[name].append(1000 * worked)
    reads = few.segments[0].reads
    ratios, busy_ratios = (
        [a / b for a, b in zip(*each.values(), strict=True)] for each in (times, busy)
    )
    return {
        "rows": rows,
        "dtype": str(dtype).removeprefix("torch."),
        "keys": "normal" if plain else "500 centres",
        "method": spec,
        "sinks": reads.sinks,
        "window": reads.window,
        "retrieved": reads.count,
        "full_ms": round(statistics.median(times["full"]), 2),
        "pqcache_ms": round(statistics.median(times["pqcache"]), 2),
        "times_faster": round(statistics.median(ratios), 2),
        "times_faster_least": round(min(ratios), 2),
        "times_less_cpu": round(statistics.median(busy_ratios), 2),
        "pairs": repeat,
        "code_seconds": round(made, 2),
    }


def clusters(tokens: int, repeat: int, spec: str) -> dict:
    """Seconds of reading one layer, and of what comes on top of it."""
    model = random_weights(interpret(LAYER, "8B"), torch.bfloat16, torch.device("cpu"))
    engine = Engine(model)
    ids = torch.randint(LAYER["vocab_size"], (tokens,)).tolist()
    method = parse_method(spec, Budget(fraction=0.1))
    reads, selects = [], []
    for _ in range(repeat):
        begin = perf_counter()
        reading = drain(engine.prefill(ids, [Compression(method)]))
        reads.append(perf_counter() - begin - reading.select_seconds)
        selects.append(reading.select_seconds)
    return {
        "tokens": tokens,
        "method": spec,
        "read_seconds": round(statistics.median(reads), 2),
        "clusters_seconds": round(statistics.median(selects), 3),
        "share": round(statistics.median(b / a for a, b in zip(reads, selects, strict=True)), 4),
        "pairs": repeat,
    }


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["decode", "clusters"])
    parser.add_argument("--rows", default="32768,131072")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "f32"])
    parser.add_argument("--method", default="pqcache:extra_sinks=true")
    parser.add_argument("--plain", action="store_true", help="keys without any clusters")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with torch.inference_mode():
        if given.what == "decode":
            lengths = [int(rows) for rows in given.rows.split(",")]
            results = [
                decode(rows, DTYPES[given.dtype], given.repeat, given.method, given.plain)
                for rows in lengths
            ]
        else:
            results = [clusters(given.tokens, given.repeat, given.method)]
    print(
        json.dumps(
            {
                "cpu": machine.processor(),
                "platform": platform.platform(),
                "torch": torch.__version__,
                "threads": given.threads,
                "results": results,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
