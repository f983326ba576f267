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
    """Run `python -m kvchat` to its end; `stdin` is piped in, None is /dev/null."""
    return subprocess.run(
        [sys.executable, "-m", "kvchat", *arguments],
        **({"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}),
        capture_output=True,
        timeout=120,
        env=os.environ | ONE_THREAD | environment,
    )
