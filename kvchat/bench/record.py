"""One test as a flat record: the keys of llama-bench where they exist, numbers as they are."""

import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from statistics import mean, stdev
from typing import Any

import torch

from kvchat import __version__
from kvchat.bench.measure import Measured, Peak
from kvchat.bench.settings import Settings, Test
from kvchat.bench.subject import Subject
from kvchat.engine.methods.naming import method_options, name_of, spec_of
from kvchat.hub.find import CHECKOUT
from kvchat.machine import resources as machine

Record = dict[str, Any]


@dataclass(frozen=True)
class Missing:
    """A test for which memory was not enough: bytes that it needs in all, and that can be had."""

    needed: int
    free: int


def record(settings: Settings, subject: Subject, test: Test, found: Measured | Missing) -> Record:
    """What was measured of a test, or that it could not be; the keys are always the same."""
    engine = subject.engine
    cpu = engine.device.type == "cpu"
    about = {
        "schema": 1,
        "build_commit": commit(),
        "test_time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "versions": f"kvchat {__version__}, torch {torch.__version__}",
        "platform": platform.platform(),
        "cpu_info": machine.processor(),
        "gpu_info": None if cpu else torch.cuda.get_device_name(engine.device),
        "device": str(engine.device),
        "load_before": round(subject.busy, 2),
        "n_threads": torch.get_num_threads(),
        "model": subject.name,
        "model_type": engine.config.family,
        "model_size": engine.weights_bytes,
        "model_n_params": engine.config.parameters,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "weights": engine.weights,
        "attention": engine.backend.name,
        "prefill_chunk": engine.chunk,
        "text": settings.text or "random",
        "seed": settings.seed,
        "delay": settings.delay,
        "warmup": settings.warmup,
        "method": name_of(test.method),
        "spec": spec_of(test.method),
        "options": method_options(test.method),
        "budget": str(test.method.budget),
        "select": "document",
        "test": test.name,
        "n_prompt": test.n_prompt,
        "n_gen": test.n_gen,
        "n_depth": test.n_depth,
    }
    results = _missed(found) if isinstance(found, Missing) else _results(subject, test, found)
    return about | dict.fromkeys(RESULTS) | results


def _results(subject: Subject, test: Test, found: Measured) -> Record:
    tokens, device = test.n_prompt or test.n_gen, subject.engine.device
    speeds = [1e9 * tokens / ns for ns in found.samples]
    average = mean(found.samples)
    # on CUDA this would be the time of giving orders
    select = mean(found.selecting) if device.type == "cpu" else None
    peak = found.writing or found.reading
    return {
        "prefill_chunk": found.chunk,
        "kept_fraction": found.kept,
        "read_fraction": found.read,
        "kv_bytes": found.kv,
        "kv_full_bytes": found.kv_full,
        "peak_prefill_bytes": found.reading.most,
        "peak_decode_bytes": found.writing.most if found.writing else None,
        **_split(subject, found.kv, peak),
        "ttft_ns": average if test.n_prompt else None,
        "tpot_ns": average / tokens if test.n_gen else None,
        "select_ns": select,
        "avg_ns": average,
        "stddev_ns": _spread(found.samples),
        "avg_ts": mean(speeds),
        "stddev_ts": _spread(speeds),
        "samples_ns": found.samples,
        "samples_ts": speeds,
    }


def _split(subject: Subject, kv: int, peak: Peak) -> Record:
    """The peak in parts that sum to it: weights, KV, workspace, and the process itself in RAM.

    Workspace is what came and went beside the cache. torch counts allocations on CUDA alone; in
    RAM the peak is what the system saw of the whole process.
    """
    weights = subject.engine.weights_bytes
    workspace = max(peak.most - peak.before - kv, 0)
    cuda = subject.engine.device.type == "cuda"
    return {
        "peak_weights_bytes": weights,
        "peak_kv_bytes": kv,
        "peak_workspace_bytes": workspace,
        "peak_process_bytes": None if cuda else peak.most - weights - kv - workspace,
        "peak_allocated_bytes": peak.most if cuda else None,
        "peak_reserved_bytes": peak.reserved if cuda else None,
    }


def _missed(found: Missing) -> Record:
    return {"error": "out of memory", "needed_bytes": found.needed, "free_bytes": found.free}


RESULTS = (
    "kept_fraction",
    "read_fraction",
    "kv_bytes",
    "kv_full_bytes",
    "peak_prefill_bytes",
    "peak_decode_bytes",
    "peak_weights_bytes",
    "peak_kv_bytes",
    "peak_workspace_bytes",
    "peak_process_bytes",
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "ttft_ns",
    "tpot_ns",
    "select_ns",
    "avg_ns",
    "stddev_ns",
    "avg_ts",
    "stddev_ts",
    "samples_ns",
    "samples_ts",
    "error",
    "needed_bytes",
    "free_bytes",
)


def _spread(values: list[int] | list[float]) -> float:
    """Standard deviation of a sample, as llama-bench has it; 0 for one value."""
    return stdev(values) if len(values) > 1 else 0.0


@cache
def commit() -> str | None:
    """The commit of the checkout that runs, `-dirty` if it was changed; None if it is installed."""
    if not (CHECKOUT / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
