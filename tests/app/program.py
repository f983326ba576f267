"""The built program, run as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "samples" / "valley.txt"
# The models of the tests are tiny: threads would wait for each other longer than they work.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
DEMO = ROOT / "models" / "demo"


def kvchat(
    *arguments: str, stdin: bytes | None = None, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run `python -m kvchat` to its end, with nothing (or `stdin`) piped in."""
    return subprocess.run(
        [sys.executable, "-m", "kvchat", *arguments],
        input=stdin if stdin is not None else b"",
        capture_output=True,
        timeout=120,
        env=os.environ | ONE_THREAD | environment,
    )
