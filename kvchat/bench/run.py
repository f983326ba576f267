"""`kvchat bench`: speed and memory of prefill and decoding, method by method."""

import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from time import sleep

import torch

from kvchat import __version__, process
from kvchat.bench.measure import RESULTS, Note, Record, Test, cases_of, measure
from kvchat.bench.settings import Settings
from kvchat.bench.subject import Subject, load
from kvchat.bench.table import writer
from kvchat.engine.methods.specs import method_options, name_of, spec_of
from kvchat.errors import EXIT_CODES, KvchatError, is_out_of_memory
from kvchat.hub.places import CHECKOUT
from kvchat.machine import resources as machine
from kvchat.machine.loaded import workload
from kvchat.machine.plan import geometry_of, make_plan
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import size


def run(settings: Settings) -> int:
    """Measure every test, write records as they come. Returns the exit code."""
    process.interruptible()
    picture = _checked(settings)
    screen = Screen(quiet=settings.errput is not None)
    subject = load(settings, screen)
    outputs = [writer(settings.output, sys.stdout, settings, subject)]
    if settings.errput is not None:
        outputs.append(writer(settings.errput, sys.stderr, settings, subject))
    records: list[Record] = []
    try:
        for found in sweep(settings, subject, screen):
            records.append(found)
            for output in outputs:
                output.row(found)
    except KeyboardInterrupt:
        return process.CTRL_C
    finally:  # what was measured is whole, whatever ended it
        for output in outputs if records else ():
            output.end()
        if picture is not None and records:
            _render(picture, records, screen)
    return EXIT_CODES["memory"] if any(found["error"] for found in records) else 0


def list_devices() -> int:
    """Print what `--device` can be."""
    for device in machine.devices():
        name = machine.device_name(device).partition(" ")[2]
        free, whole = size(machine.free(device)), size(machine.total(device))
        print(f"{device}  {name}, {free} of {whole} free")
    return 0


def sweep(settings: Settings, subject: Subject, screen: Screen) -> Iterator[Record]:
    """Measure one test after the other; a record of each, also where memory is not enough.

    Raises KvchatError("usage") before the first for a budget that a method cannot meet.
    """
    tests, engine = list(cases_of(settings)), subject.engine
    for test in tests:
        test.method.entries(geometry_of(engine.config, engine.dtype.itemsize, test.read))
    for number, test in enumerate(tests, 1):
        title = f"{number}/{len(tests)} {spec_of(test.method)} {test.method.budget} {test.name}"
        with screen.still() as line:
            found = _found(settings, subject, test, partial(_titled, line, title))
        yield record(settings, subject, test, found)


def _titled(line: Note, title: str, text: str) -> None:
    line(f"{title}: {text}")


def _found(settings: Settings, subject: Subject, test: Test, note: Note) -> Record:
    if settings.delay:
        note(f"resting {settings.delay:g} s")
        sleep(settings.delay)
    if test.threads:
        torch.set_num_threads(test.threads)
    engine, device = subject.engine, subject.engine.device
    plan = make_plan(workload(engine, test.method, test.read, test.read + test.n_gen))
    used = machine.in_use(device)
    beyond = max(plan.prefill, plan.chat) - plan.base - plan.weights  # not there yet
    left = machine.left(device, settings.mem_limit)
    missing = {"error": "out of memory", "needed_bytes": used + beyond, "free_bytes": used + left}
    # A system without room ends a process in place of refusing; a card refuses.
    if beyond > left and (device.type == "cpu" or settings.mem_limit is not None):
        return missing
    ids = subject.ids(test.read)
    try:
        return measure(engine, test, ids, settings.repeat, settings.warmup, note)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    needed = max(used + beyond, machine.peak(device))
    machine.release(device)
    return missing | {"needed_bytes": needed}


def _checked(settings: Settings) -> Path | None:
    """Refuse what cannot be, before anything is loaded. Returns where the picture goes, if any."""
    tests = list(cases_of(settings))
    if not tests:
        raise KvchatError("usage", "there is nothing to measure: -p 0 and -n 0", "-p 512", "-n 64")
    if settings.plot is None:
        return None
    if not any(test.n_gen for test in tests):
        raise KvchatError("usage", "--plot shows the speed of decoding, and -n is 0", "-n 64")
    # matplotlib behind it is optional
    from kvchat.plots import target

    return target(settings.plot)


def _render(path: Path, records: list[Record], screen: Screen) -> None:
    # matplotlib behind it is optional
    from kvchat.bench.picture import render

    decoded = [found for found in records if found["n_gen"] and not found["error"]]
    if not decoded:
        screen.warn(f"no picture in {path}: nothing was decoded")
        return
    render(path, decoded)
    screen.say(f"picture in {path}")


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
