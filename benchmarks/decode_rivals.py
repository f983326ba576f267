"""Decoding, prefill and peak memory on a CPU: kvchat beside llama.cpp and transformers.

    RIVALS_PYTHON=PYTHON python benchmarks/decode_rivals.py --models FOLDER

FOLDER has NAME/ (a checkpoint in bf16), and for llama.cpp NAME-bf16.gguf and NAME-q4_0.gguf.
RIVALS_PYTHON is a Python with llama-cpp-python, best built for this very processor
(`CMAKE_ARGS=-DGGML_NATIVE=on pip install llama-cpp-python --no-binary llama-cpp-python`); without
it llama.cpp is left out. Each way is a process; they write a few tokens in turn, so that a ratio is
that of the same minutes. A figure is the CPU's: what all threads of a process worked.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
OUT = HERE.parent / "docs" / "bench" / "rivals"
SWITCH = "RIVALS_PYTHON"
KEPT = "adakv:budget=25%"
WAYS = {  # way: program, ending of the file's name, weights, method, what it is measured against
    "llama.cpp bf16": ("llama.cpp", "-bf16.gguf", "", "", "llama.cpp bf16"),
    "llama.cpp Q4_0": ("llama.cpp", "-q4_0.gguf", "", "", "llama.cpp Q4_0"),
    "transformers bf16": ("transformers", "", "", "", "llama.cpp bf16"),
    "kvchat bf16": ("kvchat", "", "auto", "full", "llama.cpp bf16"),
    "kvchat bf16, 25 % kept": ("kvchat", "", "auto", KEPT, "llama.cpp bf16"),
    "kvchat int4": ("kvchat", "", "int4", "full", "llama.cpp Q4_0"),
    "kvchat int4, 25 % kept": ("kvchat", "", "int4", KEPT, "llama.cpp Q4_0"),
}
COLUMNS = ("CPU ms", "least", "wall ms", "of llama.cpp", "prefill CPU s", "of llama.cpp", "peak MB")


class Rival:
    """A process that decodes in one way; see `one_rival.py`."""

    def __init__(self, way: str, path: Path, depth: int, threads: int):
        program, _, weights, method, _ = WAYS[way]
        python = os.environ[SWITCH] if program == "llama.cpp" else sys.executable
        given = (program, str(path), weights, method, str(depth), str(threads))
        surroundings = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        surroundings["PYTHONWARNINGS"] = "ignore"
        self._process = subprocess.Popen(
            [python, str(HERE / "one_rival.py"), *given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=surroundings,
        )
        self.prefill = self._heard()

    def write(self, tokens: int) -> dict[str, float]:
        """Milliseconds of so many tokens."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{tokens}\n")
        self._process.stdin.flush()
        return self._heard()

    def end(self) -> dict[str, float]:
        """Its peak of memory."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        last = self._heard()
        self._process.wait()
        return last

    def stop(self) -> None:
        """Where something has gone wrong."""
        self._process.kill()
        self._process.wait()

    def _heard(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a rival ended with code {self._process.wait()}")
        return json.loads(line)


def ways_of(model: str, folder: Path) -> dict[str, Path]:
    """The ways that can run here, with their files; a line for those that cannot."""
    found = {}
    for way, (program, ending, *_) in WAYS.items():
        path = folder / f"{model}{ending}"
        if program == "llama.cpp" and not os.environ.get(SWITCH):
            print(f"{way} is left out: {SWITCH} does not name a Python with llama-cpp-python")
        elif not path.exists():
            print(f"{way} is left out: there is no {path}")
        else:
            found[way] = path
    return found


def measured(
    paths: dict[str, Path], depth: int, threads: int, rounds: int, tokens: int
) -> dict[str, dict[str, float]]:
    """All ways at one depth, in turn; the first round is not counted."""
    rivals: dict[str, Rival] = {}
    try:
        for way, path in paths.items():
            rivals[way] = Rival(way, path, depth, threads)
        times: dict[str, list[dict[str, float]]] = {way: [] for way in rivals}
        for number in range(rounds + 1):
            for way, rival in rivals.items():
                spent = rival.write(tokens)
                if number:
                    times[way].append(spent)
        ends = {way: rival.end() for way, rival in rivals.items()}
    except BaseException:
        for rival in rivals.values():
            rival.stop()
        raise
    found = {}
    for way, rival in rivals.items():
        cpu = [each["cpu_ms"] for each in times[way]]
        found[way] = {
            "cpu_ms": statistics.median(cpu),
            "cpu_ms_least": min(cpu),
            "wall_ms": statistics.median(each["wall_ms"] for each in times[way]),
            **rival.prefill,
            **ends[way],
        }
        if (base := WAYS[way][4]) in rivals:
            pairs = zip(cpu, times[base], strict=True)
            found[way]["of_llama_cpp"] = statistics.median(a / b["cpu_ms"] for a, b in pairs)
            first = rivals[base].prefill["prefill_cpu_s"]
            found[way]["prefill_of_llama_cpp"] = rival.prefill["prefill_cpu_s"] / first
    return found


def table(title: str, found: dict[str, dict[str, float]]) -> str:
    """The figures of one depth, in columns."""
    lines = [title, f"  {'':<24}" + "".join(f"{name:>15}" for name in COLUMNS)]
    for way, figures in found.items():
        names = ("cpu_ms", "cpu_ms_least", "wall_ms", "of_llama_cpp")
        names = (*names, "prefill_cpu_s", "prefill_of_llama_cpp", "peak_mb")
        cells = (f"{figures[name]:.2f}" if name in figures else "-" for name in names)
        lines.append(f"  {way:<24}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=os.environ.get("KVCHAT_MODELS") or "models")
    parser.add_argument("--only", nargs="*", default=["smollm2-135m", "qwen2.5-coder-0.5b"])
    parser.add_argument("--depths", nargs="*", type=int, default=[512, 4096, 8000])
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--out", type=Path, default=OUT / f"{platform.machine()}.json")
    given = parser.parse_args()
    cells: list[dict[str, object]] = []
    for model in given.only:
        paths = ways_of(model, Path(given.models))
        for threads in given.threads if paths else ():
            for depth in given.depths:
                found = measured(paths, depth, threads, given.rounds, given.tokens)
                plural = "" if threads == 1 else "s"
                print(table(f"{model}, {depth:,} tokens, {threads} thread{plural}", found))
                print(flush=True)
                cell = {"model": model, "depth": depth, "threads": threads, "ways": found}
                cells.append(cell)
                given.out.parent.mkdir(parents=True, exist_ok=True)
                time = datetime.now(UTC).isoformat(timespec="minutes")
                content = {"time": time, "platform": platform.platform(), "cells": cells}
                given.out.write_text(json.dumps(content, indent=1) + "\n")
    if not cells:
        sys.exit(f"there is no model in {given.models}: --models FOLDER")


if __name__ == "__main__":
    main()
