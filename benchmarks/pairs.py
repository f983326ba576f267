"""Times two or more ways of doing the same in turn, and keeps the figures in a JSON file.

Machines are shared and clocks wander: only ratios of one run mean anything, taken pair by pair.
"""

import json
import platform
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time, time

import torch
import transformers

from kvchat import __version__
from kvchat.machine.resources import processor

FOLDER = Path(__file__).parent.parent / "docs" / "bench"


def interleaved(ways: dict[str, Callable[[], object]], pairs: int) -> dict[str, dict[str, list]]:
    """Milliseconds of every way, `pairs` times in turn after one round that is not counted.

    `wall` is the clock's, `cpu` what all threads of the process worked: with one thread that leaves
    out what other processes took.
    """
    times = {name: {"wall": [], "cpu": []} for name in ways}
    for number in range(pairs + 1):
        for name, run in ways.items():
            wall, cpu = perf_counter(), process_time()
            run()
            if number:
                times[name]["wall"].append(1e3 * (perf_counter() - wall))
                times[name]["cpu"].append(1e3 * (process_time() - cpu))
    return times


def summary(times: dict[str, dict[str, list]], base: str) -> dict[str, dict]:
    """Per way: median and least milliseconds, and how many times faster than `base`.

    A ratio is the median over the pairs, with the one of the least times beside it.
    """
    found = {}
    for name, clocks in times.items():
        found[name] = {}
        for clock, samples in clocks.items():
            ratios = [b / a for a, b in zip(samples, times[base][clock], strict=True)]
            found[name][clock] = {
                "median_ms": round(statistics.median(samples), 3),
                "min_ms": round(min(samples), 3),
                "times_faster": round(statistics.median(ratios), 2),
                "times_faster_min": round(min(times[base][clock]) / min(samples), 2),
            }
    return found


def report(result: dict[str, dict]) -> None:
    """The summary for the eye."""
    for name, clocks in result.items():
        parts = [
            f"{clock} {c['median_ms']:8.1f} ms (least {c['min_ms']:.1f}) {c['times_faster']:5.2f}x "
            f"({c['times_faster_min']:.2f}x)"
            for clock, c in clocks.items()
        ]
        print(f"    {name:<28}{'   '.join(parts)}", flush=True)


def save(cell: str, content: dict) -> None:
    """Put the summary of a cell, by thread count, into this kind of machine's file."""
    known = _known()
    threads = f"{torch.get_num_threads()} threads"
    cells = known.setdefault("pairs", {})
    cells.setdefault(cell, {})[threads] = {"time": int(time()), "ways": content}
    _write(known)


def keep(name: str, content: dict) -> None:
    """Put figures that are no times into this kind of machine's file."""
    known = _known()
    known.setdefault("errors", {})[name] = {"time": int(time()), "ways": content}
    _write(known)


def _path() -> Path:
    kind = re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")
    return FOLDER / f"{kind}.json"


def _known() -> dict:
    return json.loads(_path().read_text()) if _path().exists() else {}


def _write(known: dict) -> None:
    known |= {
        "cpu": processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "kvchat": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    _path().write_text(json.dumps(known, indent=1) + "\n")
