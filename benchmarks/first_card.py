"""What a first card is asked, part after part, each with a limit; what fails is noted, and the next
goes on. About 7 minutes.

    python benchmarks/first_card.py [--seconds 400] [--try]

Numbers first (`pytest -m gpu`), then every kernel beside its twin (`kernels.py`), then writing
speed (`card.py`, 8B shape, random weights), then a chat as it is. Writes exit codes, seconds and
last lines to docs/bench/cards/first.json; the measurements are in the files of each part. `--try`
shows the commands and runs none. Has never been run on a card.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).parents[1]
LINES = 15  # of each output that are kept
PARTS: dict[str, tuple[float, list[str]]] = {
    "machine": (0.05, ["-m", "kvchat", "doctor"]),
    "numbers": (0.35, ["-m", "pytest", "-m", "gpu", "tests"]),
    "kernels": (0.25, ["benchmarks/kernels.py", "--rounds", "7"]),
    "writing": (
        0.25,
        ["benchmarks/card.py", "--shapes", "8B", "--rows", "4096", "32768", "--pairs", "3"],
    ),
    "a chat": (
        0.10,
        [
            "-m",
            "kvchat",
            "-m",
            "demo",
            "samples/valley.txt",
            "--device",
            "cuda",
            "-v",
            "-p",
            "Who?",
        ],
    ),
}


def ran(command: list[str], seconds: float) -> dict[str, object]:
    """Exit code, seconds, and the last lines of a command; -1 if it took too long."""
    begin = perf_counter()
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, timeout=seconds, capture_output=True, text=True
        )
        code, said = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:
        parts = (late.stdout or b"", late.stderr or b"")
        code, said = -1, "".join(part.decode("utf-8", "replace") for part in parts)
    took = round(perf_counter() - begin, 1)
    return {"exit": code, "seconds": took, "said": said.splitlines()[-LINES:]}


def missing() -> str:
    """Why there is no card, if there is none."""
    import torch  # not to show what would be run

    if torch.cuda.is_available():
        return ""
    return "torch is a CPU build" if torch.version.cuda is None else "no device or driver"


def main() -> int:
    """Run every part; the exit code is 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--try", action="store_true", dest="tries")
    asked = parser.parse_args()
    if not asked.tries and (why := missing()):
        print(f"first_card.py asks a CUDA card and there is none here: {why}", file=sys.stderr)
        return 7
    found = {}
    for name, (share, arguments) in PARTS.items():
        command = [sys.executable, *arguments]
        print(f"{name}: {' '.join(arguments)} ({share * asked.seconds:.0f} s at most)", flush=True)
        if not asked.tries:
            found[name] = ran(command, share * asked.seconds)
            print(json.dumps(found[name], indent=1), flush=True)
    if found:
        path = ROOT / "docs" / "bench" / "cards" / "first.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(part["exit"] for part in found.values()))


if __name__ == "__main__":
    sys.exit(main())
