"""The tests one after the other: a record of each, also where memory is not enough."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from time import sleep

import torch

from kvchat.bench.measure import measure
from kvchat.bench.record import Missing, Record, record
from kvchat.bench.settings import Settings, Test
from kvchat.bench.subject import Subject
from kvchat.engine.methods.naming import spec_of
from kvchat.errors import is_out_of_memory
from kvchat.machine import resources as machine
from kvchat.machine.loaded import workload
from kvchat.machine.plan import Plan, geometry_of, make_plan
from kvchat.terminal.screen import Screen


def sweep(settings: Settings, subject: Subject, screen: Screen) -> Iterator[Record]:
    """Measure every test of the settings."""
    tests = list(settings.tests())
    _require_budgets(subject, tests)
    for number, test in enumerate(tests, 1):
        title = f"{number}/{len(tests)} {spec_of(test.method)} {test.method.budget} {test.name}"
        with screen.still() as line:
            if settings.delay:
                line(f"{title}: resting {settings.delay:g} s")
                sleep(settings.delay)
            if test.threads:
                torch.set_num_threads(test.threads)
            found = _record(settings, subject, test, partial(_note, line, title))
        yield found


def _record(
    settings: Settings, subject: Subject, test: Test, note: Callable[[str], None]
) -> Record:
    engine, device = subject.engine, subject.engine.device
    plan, held = plan_of(subject, test), machine.in_use(device)
    beyond = max(plan.reading, plan.chatting) - plan.base - plan.weights  # not there yet
    left = machine.left(device, settings.mem_limit)
    missing = Missing(held + beyond, held + left)
    # A system without room ends a process in place of refusing; a card refuses.
    if beyond > left and (device.type == "cpu" or settings.mem_limit is not None):
        return record(settings, subject, test, missing)
    ids = subject.ids(test.read)
    try:
        found = measure(engine, test, ids, settings.repeat, settings.warmup, note)
        return record(settings, subject, test, found)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    missing = replace(missing, needed=max(missing.needed, machine.peak(device)))
    machine.release(device)
    return record(settings, subject, test, missing)


def _note(line: Callable[[str], None], title: str, text: str) -> None:
    line(f"{title}: {text}")


def plan_of(subject: Subject, test: Test) -> Plan:
    """What a test will need, estimated."""
    limit = test.read + test.n_gen
    return make_plan(workload(subject.engine, test.method, test.read, limit))


def _require_budgets(subject: Subject, tests: list[Test]) -> None:
    """Raise KvchatError("usage") now for a budget that a method cannot meet."""
    engine = subject.engine
    for test in tests:
        test.method.entries(geometry_of(engine.config, engine.dtype.itemsize, test.read))
