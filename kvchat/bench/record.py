"""One test as a flat record: the keys of llama-bench where they exist, numbers as they are."""

import platform
import subprocess
from datetime import UTC, datetime
from functools import cache

import torch

from kvchat import __version__
from kvchat.bench.cases import Test
from kvchat.bench.measure import RESULTS, Record
from kvchat.bench.settings import Settings
from kvchat.bench.subject import Subject
from kvchat.engine.methods.specs import method_options, name_of, spec_of
from kvchat.hub.find import CHECKOUT
from kvchat.machine import resources as machine


def record(settings: Settings, subject: Subject, test: Test, found: Record) -> Record:
    """A test and what was `found` of it, of RESULTS; the keys are always the same."""
    engine = subject.engine
    cpu = engine.device.type == "cpu"
    options = method_options(test.method)
    about = {
        "schema": 2,
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
        "options": ",".join(f"{name}={value}" for name, value in options.items()),
        "budget": str(test.method.budget),
        "select": "document",
        "test": test.name,
        "n_prompt": test.n_prompt,
        "n_gen": test.n_gen,
        "n_depth": test.n_depth,
    }
    return about | dict.fromkeys(RESULTS) | found


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
