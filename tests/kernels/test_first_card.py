"""The script for a first card, as far as it goes without one."""

import json
import re
import subprocess
import sys

from tests.support.models import ROOT

SCRIPT = ROOT / "benchmarks" / "first_card.py"


def test_its_parts_are_there(tmp_path):
    """Every command names a script that there is, with flags that the script knows."""
    run = [sys.executable, SCRIPT, "--try", "--seconds", "100"]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    parts = done.stdout.splitlines()
    limits = [float(found[1]) for line in parts if (found := re.search(r"\((\d+) s", line))]
    assert len(parts) == len(limits) == 5 and sum(limits) == 100
    scripts = re.findall(r"(benchmarks/\w+\.py)([^(]*)", done.stdout)
    assert len(scripts) == 2
    for name, rest in scripts:
        text = (ROOT / name).read_text("utf-8")
        assert all(json.dumps(flag) in text for flag in re.findall(r"--\w+", rest)), name
