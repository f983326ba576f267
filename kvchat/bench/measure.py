"""The tests that the options of `kvchat bench` ask for, and what is measured of each:
nanoseconds of every repetition, bytes of the cache, peaks of the process.

A clock is read when all work of the device is done; the peak begins anew before every repetition,
with nothing alive but the weights and what the test stands on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch

from kvchat.bench.settings import Settings
from kvchat.engine.budget import Budget
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.engine import Engine
from kvchat.engine.events import Progress, Smaller, drain
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.build import parse_method
from kvchat.engine.prefill.prefill import Compression
from kvchat.machine import resources as machine

WARM = 16  # tokens decoded before it counts
Record = dict[str, Any]
RESULTS = (
    "kept_fraction", "read_fraction", "kv_bytes", "kv_full_bytes",
    "peak_prefill_bytes", "peak_decode_bytes", "peak_weights_bytes", "peak_kv_bytes",
    "peak_workspace_bytes", "peak_process_bytes", "peak_allocated_bytes", "peak_reserved_bytes",
    "ttft_ns", "tpot_ns", "select_ns", "avg_ns", "stddev_ns", "avg_ts", "stddev_ts",
    "samples_ns", "samples_ts", "error", "needed_bytes", "free_bytes",
)  # fmt: skip
"""Keys of every record that are measured, None where there is nothing to say."""
Note = Callable[[str], None]


@dataclass(frozen=True)
class Test:
    """Tokens to prefill with a method, or to decode after others were; 0 threads: any."""

    method: Method
    threads: int
    n_prompt: int
    n_gen: int
    n_depth: int

    @property
    def name(self) -> str:
        """`pp512`, `tg128`, `tg128 @ d4096`, as in llama-bench."""
        if self.n_prompt:
            return f"pp{self.n_prompt}"
        return f"tg{self.n_gen} @ d{self.n_depth}" if self.n_depth else f"tg{self.n_gen}"

    @property
    def read(self) -> int:
        """Tokens of the prefill; a cache is never empty when something is decoded."""
        return self.n_prompt or max(self.n_depth, 1)


def methods_of(settings: Settings) -> list[Method]:
    """The methods with every budget, each once. Raises KvchatError("usage")."""
    budgets: list[Budget | None] = [Budget.parse(text) for text in settings.budgets]
    found = (parse_method(m, b) for m in settings.methods for b in budgets or [None])
    return list(dict.fromkeys(found))


def cases_of(settings: Settings) -> Iterator[Test]:
    """The cross product of threads, methods, and tokens to prefill or to decode; 0 is none."""
    for threads, method in product(settings.threads or [0], methods_of(settings)):
        for tokens in filter(None, settings.prompts):
            yield Test(method, threads, tokens, 0, 0)
        for depth, tokens in product(settings.depths, filter(None, settings.generates)):
            yield Test(method, threads, 0, tokens, depth)


class Peak(NamedTuple):
    """Most bytes in use, and what of them was there before the test began, weights included."""

    most: int
    before: int
    reserved: int  # by torch's allocator on CUDA, used or not


class Prefill(NamedTuple):
    """One prefill: nanoseconds in all and of compressing, its peak, tokens at once."""

    took: int
    selecting: int
    peak: Peak
    chunk: int


def share_of(entries: int, cache: KVCache) -> float:
    """The share that `entries` are of all KV pairs of the frozen tokens, over layers and heads."""
    return entries / (cache.frozen * sum(layer.tail.k.shape[0] for layer in cache.layers))


def measure(
    engine: Engine, test: Test, ids: Sequence[int], repeat: int, warmup: bool, note: Note
) -> Record:
    """Prefill `ids` `repeat` times, or prefill them once and decode after them `repeat` times.

    Returns RESULTS as far as they are known. What memory does not suffice for raises whatever the
    allocator raises.
    """
    machine.release(engine.device)
    decoding = None
    if test.n_prompt:
        if warmup:
            note("warming up")
            prefill(engine, test, ids)
        prefills, cache = [], None
        for number in range(1, repeat + 1):
            note(f"{number} of {repeat}")
            cache = None  # the last one is gone when the next begins
            one, cache = prefill(engine, test, ids)
            prefills.append(one)
        samples = [one.took for one in prefills]
    else:
        note(f"prefill of {len(ids):,} tokens")
        one, cache = prefill(engine, test, ids)
        prefills, samples = [one], []
        if warmup:
            note("warming up")
            decode(engine, cache, min(WARM, test.n_gen))
            cache.truncate(len(ids))
        _begin(engine.device)
        for number in range(1, repeat + 1):
            note(f"{number} of {repeat}")
            samples.append(decode(engine, cache, test.n_gen))
            if number < repeat:
                cache.truncate(len(ids))
        decoding = _end(engine.device, one.peak.before)
    assert cache is not None, "repeat is 1 at least"
    return times(test, samples) | {
        # on CUDA this would be the time of giving orders
        "select_ns": mean(one.selecting for one in prefills) if not _cuda(engine) else None,
        "prefill_chunk": min(one.chunk for one in prefills),
        "kept_fraction": share_of(cache.kept, cache),
        "read_fraction": share_of(cache.read, cache),
        "kv_full_bytes": engine.kv_bytes(cache.position),
        **sizes(engine, cache, [one.peak for one in prefills], decoding),
    }


def times(test: Test, samples: list[int]) -> Record:
    """Means and spreads of nanoseconds and tokens per second."""
    tokens = test.n_prompt or test.n_gen
    speeds, average = [1e9 * tokens / ns for ns in samples], mean(samples)
    return {
        "ttft_ns": average if test.n_prompt else None,
        "tpot_ns": average / tokens if test.n_gen else None,
        "avg_ns": average,
        "stddev_ns": _spread(samples),
        "avg_ts": mean(speeds),
        "stddev_ts": _spread(speeds),
        "samples_ns": samples,
        "samples_ts": speeds,
    }


def sizes(engine: Engine, cache: KVCache, prefills: list[Peak], decoding: Peak | None) -> Record:
    """Bytes of the cache and of the peaks; the last one in parts that sum to it.

    Workspace is what came and went beside the cache. torch counts allocations on CUDA alone; in
    RAM the peak is what the system saw of the whole process.
    """
    prefill = max(prefills, key=lambda peak: peak.most - peak.before)
    peak, kv, weights = decoding or prefill, cache.memory().total, engine.weights_bytes
    workspace = max(peak.most - peak.before - kv, 0)
    return {
        "kv_bytes": kv,
        "peak_prefill_bytes": prefill.most,
        "peak_decode_bytes": decoding.most if decoding else None,
        "peak_weights_bytes": weights,
        "peak_kv_bytes": kv,
        "peak_workspace_bytes": workspace,
        "peak_process_bytes": None if _cuda(engine) else peak.most - weights - kv - workspace,
        "peak_allocated_bytes": peak.most if _cuda(engine) else None,
        "peak_reserved_bytes": peak.reserved if _cuda(engine) else None,
    }


def prefill(engine: Engine, test: Test, ids: Sequence[int]) -> tuple[Prefill, KVCache]:
    """One prefill of `ids` by the test's method, and its cache."""
    chunks = [engine.chunk]

    def see(event: Progress | Smaller) -> None:
        if isinstance(event, Smaller):
            chunks.append(event.chunk)

    before = _begin(engine.device)
    begin = machine.clock(engine.device)
    done = drain(engine.prefill(ids, [Compression(test.method)]), see)
    took = machine.clock(engine.device) - begin
    peak = _end(engine.device, before)
    return Prefill(took, round(done.select_seconds * 1e9), peak, chunks[-1]), done.caches[0]


def decode(engine: Engine, cache: KVCache, tokens: int) -> int:
    """Nanoseconds of feeding `tokens` tokens, each the likeliest after the one before."""
    first = torch.zeros(engine.config.vocab_size, device=engine.device)
    decoded = engine.decode(cache, first, Sampling())
    next(decoded)  # the first token comes without work
    begin = machine.clock(engine.device)
    for _ in range(tokens):
        next(decoded)
    return machine.clock(engine.device) - begin


def _begin(device: torch.device) -> int:
    machine.trim()
    machine.reset_peak(device)
    return machine.in_use(device)


def _end(device: torch.device, before: int) -> Peak:
    return Peak(machine.peak(device), before, machine.most_reserved(device))


def _spread(values: Sequence[float]) -> float:
    """Standard deviation of a sample, as llama-bench has it; 0 for one value."""
    return stdev(values) if len(values) > 1 else 0.0


def _cuda(engine: Engine) -> bool:
    return engine.device.type == "cuda"
