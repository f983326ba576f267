"""Compiles kernels for cards that are not here: `python tests/kernels/compiling.py [--sample]`.

In a process of its own, for the interpreter must be off. Every launcher is called as the engine
would call it; a stand-in for the driver names a card, and each launch is compiled for it instead of
run. Fails if a kernel needs more shared memory than a block can have there, or if registers spill
inside a loop. (The assembler saves a register across a loop now and then, to fit one block more.)
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

FOLDER = tempfile.TemporaryDirectory(prefix="kvchat-compile-")
os.environ.pop("TRITON_INTERPRET", None)
os.environ["TRITON_CACHE_DIR"] = FOLDER.name
sys.path.insert(0, str(Path(__file__).parents[2]))

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler.errors import CompilationError  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from tests.kernels.specimens import SPECIMENS  # noqa: E402

SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227}  # a block's limit, by compute capability
TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Card:
    """What Triton asks a driver while it compiles."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # keeps what was compiled for each card apart

    def get_current_stream(self, device: int) -> int:
        return 0


class Usage(NamedTuple):
    """What a compiled kernel takes of a multiprocessor."""

    kernel: str
    capability: int
    shared: int
    registers: int
    spilled: int

    @property
    def problem(self) -> str:
        limit = SHARED_KIB[self.capability] * 1024
        if self.shared > limit:
            return f"{self.shared} bytes of shared memory, a block has {limit}"
        return f"spills inside a loop, {self.spilled} accesses" if self.spilled else ""


def usage(kernel, capability: int) -> Usage:
    """Read off the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()

        def told(what: str) -> str:
            return subprocess.run([TOOL, what, cubin.name], capture_output=True, text=True).stdout

        text = told("-res-usage")
        found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
        assert found.keys() == {"REG", "STACK", "LOCAL"}, text
        spilled = in_loops(told("-sass")) if found["STACK"] or found["LOCAL"] else 0
    return Usage(kernel.metadata.name, capability, kernel.metadata.shared, found["REG"], spilled)


def in_loops(code: str) -> int:
    """Accesses to local memory between a backward branch and its target."""
    lines = [(int(at, 16), what) for at, what in re.findall(r"/\*([0-9a-f]{4,})\*/ +(.*?);", code)]
    assert lines, code
    loops = []
    for at, what in lines:
        branch = re.search(r"\bBRA\S* .*?0x([0-9a-f]+)", what)
        if branch and int(branch[1], 16) < at:
            loops.append((int(branch[1], 16), at))
    local = [at for at, what in lines if re.search(r"\b(LDL|STL)\b", what)]
    return sum(any(a <= at <= b for a, b in loops) for at in local)


def compile_for(capability: int, sample: bool, verbose: bool, only: str = "") -> tuple[int, int]:
    """All specimens for one card: how many kernels there are, and how many cannot be had."""
    run, compiled, bad = JITFunction.run, {}, 0

    def compile_only(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        compiled.setdefault(kernel.hash, kernel)
        return kernel

    JITFunction.run = compile_only
    triton.runtime.driver.set_active(Card(capability))
    for specimen in SPECIMENS:
        if (sample and not specimen.sample) or not re.match(only, specimen.name):
            continue
        before = len(compiled)
        try:
            specimen.launch()
        except CompilationError as error:
            bad += 1
            print(f"{specimen.name}: does not compile for {capability}: {error}", flush=True)
        for kernel in list(compiled.values())[before:]:
            used = usage(kernel, capability)
            bad += bool(used.problem)
            if used.problem or verbose:
                print(f"{specimen.name}: {used} {used.problem}", flush=True)
    print(f"compute capability {capability}: {len(compiled)} kernels, {bad} fail", flush=True)
    return len(compiled), bad


def main() -> int:
    """Compile, say what a card could not run, and fail if there is any."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sample", action="store_true", help="one of every kernel, one card")
    parser.add_argument("--verbose", action="store_true", help="what every kernel takes")
    parser.add_argument("--only", default="", help="kernels whose name begins with this pattern")
    parser.add_argument("--cards", type=int, nargs="*", choices=list(SHARED_KIB), default=[])
    arguments = parser.parse_args()
    cards = tuple(arguments.cards) or ((86,) if arguments.sample else tuple(SHARED_KIB))
    with ProcessPoolExecutor(min(len(cards), os.cpu_count() or 1)) as pool:
        options = arguments.sample, arguments.verbose, arguments.only
        jobs = [pool.submit(compile_for, card, *options) for card in cards]
        found = [job.result() for job in jobs]
    kernels, bad = (sum(column) for column in zip(*found, strict=True))
    print(f"{kernels} kernels compiled, {bad} fail")
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
