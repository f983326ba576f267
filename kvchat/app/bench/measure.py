"""Measures one test: nanoseconds of every repetition, bytes of the cache, peaks of the process.

Knows no table. A clock is read when all work of the device is done; the peak begins anew before
every repetition, with nothing alive but the weights and what the test stands on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kvchat.app import machine
from kvchat.app.bench.settings import Test
from kvchat.engine.cache.layer import KVCache
from kvchat.engine.engine import Engine
from kvchat.engine.events import drain
from kvchat.engine.methods.base import Method
from kvchat.engine.prefill import Compression, Reading
from kvchat.engine.sampling import Sampling

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
    and what a written token looks at.
    """

    samples: list[int]
    selecting: list[int]
    kept: float
    read: float
    kv: int
    kv_full: int
    reading: Peak
    writing: Peak | None


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
    method = test.method
    if test.n_prompt:
        if warmup:
            note("warming up")
            _read(engine, method, ids)
        samples, selecting, peaks = [], [], []
        for number in range(1, repeat + 1):
            note(f"{number} of {repeat}")
            cache = None  # the last one is gone when the next begins
            took, reading, peak = _read(engine, method, ids)
            samples.append(took)
            selecting.append(round(reading.select_seconds * 1e9))
            peaks.append(peak)
            cache = reading.caches[0]
            del reading
        assert cache is not None, "repeat is 1 at least"
        largest = max(peaks, key=lambda peak: peak.most - peak.before)
        return _measured(engine, cache, samples, selecting, largest, None)
    note(f"reading {len(ids):,} tokens")
    _, reading, read_peak = _read(engine, method, ids)
    selecting = [round(reading.select_seconds * 1e9)]
    cache = reading.caches[0]
    del reading
    if warmup:
        note("warming up")
        _write(engine, cache, min(WARM, test.n_gen))
        cache.truncate(len(ids))
    before = read_peak.before
    _begin(engine.device)
    samples = []
    for number in range(1, repeat + 1):
        note(f"{number} of {repeat}")
        samples.append(_write(engine, cache, test.n_gen))
        if number < repeat:
            cache.truncate(len(ids))
    return _measured(engine, cache, samples, selecting, read_peak, _end(engine.device, before))


def _read(engine: Engine, method: Method, ids: Sequence[int]) -> tuple[int, Reading, Peak]:
    before = _begin(engine.device)
    begin = machine.clock(engine.device)
    reading = drain(engine.prefill(ids, [Compression(method)]))
    took = machine.clock(engine.device) - begin
    return took, reading, _end(engine.device, before)


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
    machine.release(device)
    machine.reset_peak(device)
    return machine.in_use(device)


def _end(device: torch.device, before: int) -> Peak:
    return Peak(machine.peak(device), before, machine.most_reserved(device))


def _measured(
    engine: Engine,
    cache: KVCache,
    samples: list[int],
    selecting: list[int],
    reading: Peak,
    writing: Peak | None,
) -> Measured:
    rows = cache.frozen * engine.config.num_kv_heads * engine.config.num_layers
    return Measured(
        samples=samples,
        selecting=selecting,
        kept=cache.kept / rows,
        read=cache.read / rows,
        kv=cache.memory().total,
        kv_full=cache.position * engine.kv_bytes_per_token,
        reading=reading,
        writing=writing,
    )
