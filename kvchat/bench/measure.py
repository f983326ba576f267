"""Measures one test: nanoseconds of every repetition, bytes of the cache, peaks of the process.

Knows no table. A clock is read when all work of the device is done; the peak begins anew before
every repetition, with nothing alive but the weights and what the test stands on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kvchat.bench.settings import Test
from kvchat.engine.cache.layer import KVCache
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.engine import Engine
from kvchat.engine.events import Progress, Smaller, drain
from kvchat.engine.methods.base import Method
from kvchat.engine.prefill.prefill import Compression
from kvchat.machine import resources as machine

WARM = 16  # tokens written before it counts


@dataclass(frozen=True)
class Peak:
    """Most bytes in use, and what of them was there before the test began, weights included."""

    most: int
    before: int
    reserved: int  # by torch's allocator on CUDA, used or not


@dataclass(frozen=True)
class Measured:
    """Samples in nanoseconds, of choosing rows in each reading too; sizes in bytes.

    `kept` and `read` are rows of the tokens read, as shares of all: what the cache holds of them,
    and what a written token looks at. `chunk` tokens were read at once, fewer than the engine's if
    memory was short.
    """

    samples: list[int]
    selecting: list[int]
    kept: float
    read: float
    kv: int
    kv_full: int
    reading: Peak
    writing: Peak | None
    chunk: int


def measure(
    engine: Engine,
    test: Test,
    ids: Sequence[int],
    repeat: int,
    warmup: bool,
    note: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Read `ids` `repeat` times, or read them once and write after them `repeat` times.

    What memory does not suffice for raises whatever the allocator raises.
    """
    machine.release(engine.device)
    if test.n_prompt:
        return _reading(engine, test.method, ids, repeat, warmup, note)
    return _writing(engine, test.method, ids, test.n_gen, repeat, warmup, note)


def _reading(
    engine: Engine,
    method: Method,
    ids: Sequence[int],
    repeat: int,
    warmup: bool,
    note: Callable[[str], None],
) -> Measured:
    if warmup:
        note("warming up")
        _read(engine, method, ids)
    runs: list[_Run] = []
    cache = None
    for number in range(1, repeat + 1):
        note(f"{number} of {repeat}")
        cache = None  # the last one is gone when the next begins
        run, cache = _read(engine, method, ids)
        runs.append(run)
    assert cache is not None, "repeat is 1 at least"
    return _measured(engine, cache, [run.took for run in runs], runs, None)


def _writing(
    engine: Engine,
    method: Method,
    ids: Sequence[int],
    tokens: int,
    repeat: int,
    warmup: bool,
    note: Callable[[str], None],
) -> Measured:
    note(f"reading {len(ids):,} tokens")
    run, cache = _read(engine, method, ids)
    if warmup:
        note("warming up")
        _write(engine, cache, min(WARM, tokens))
        cache.truncate(len(ids))
    _begin(engine.device)
    samples = []
    for number in range(1, repeat + 1):
        note(f"{number} of {repeat}")
        samples.append(_write(engine, cache, tokens))
        if number < repeat:
            cache.truncate(len(ids))
    return _measured(engine, cache, samples, [run], _end(engine.device, run.peak.before))


@dataclass
class _Run:
    """One reading: nanoseconds in all and of choosing rows, its peak, tokens read at once."""

    took: int
    selecting: int
    peak: Peak
    chunk: int


def _read(engine: Engine, method: Method, ids: Sequence[int]) -> tuple[_Run, KVCache]:
    chunks = [engine.chunk]

    def see(event: Progress | Smaller) -> None:
        if isinstance(event, Smaller):
            chunks.append(event.chunk)

    before = _begin(engine.device)
    begin = machine.clock(engine.device)
    reading = drain(engine.prefill(ids, [Compression(method)]), see)
    took = machine.clock(engine.device) - begin
    select, peak = round(reading.select_seconds * 1e9), _end(engine.device, before)
    return _Run(took, select, peak, chunks[-1]), reading.caches[0]


def _write(engine: Engine, cache: KVCache, tokens: int) -> int:
    """Nanoseconds of feeding `tokens` tokens, each the likeliest after the one before."""
    first = torch.zeros(engine.config.vocab_size, device=engine.device)
    written = engine.decode(cache, first, Sampling())
    next(written)  # the first token comes without work
    begin = machine.clock(engine.device)
    for _ in range(tokens):
        next(written)
    return machine.clock(engine.device) - begin


def _begin(device: torch.device) -> int:
    machine.trim()
    machine.reset_peak(device)
    return machine.in_use(device)


def _end(device: torch.device, before: int) -> Peak:
    return Peak(machine.peak(device), before, machine.most_reserved(device))


def _measured(
    engine: Engine, cache: KVCache, samples: list[int], runs: list[_Run], writing: Peak | None
) -> Measured:
    rows = cache.frozen * engine.config.num_kv_heads * engine.config.num_layers
    return Measured(
        samples=samples,
        selecting=[run.selecting for run in runs],
        kept=cache.kept / rows,
        read=cache.read / rows,
        kv=cache.memory().total,
        kv_full=cache.position * engine.kv_bytes_per_token,
        reading=max((run.peak for run in runs), key=lambda peak: peak.most - peak.before),
        writing=writing,
        chunk=min(run.chunk for run in runs),
    )
