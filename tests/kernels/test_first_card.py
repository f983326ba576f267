"""The script for a first card, as far as it goes without one."""

import json
import re
import subprocess
import sys

import pytest
import torch

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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_says_so_and_writes_nothing():
    file = ROOT / "docs" / "bench" / "cards" / "first.json"
    before = file.read_bytes() if file.exists() else None
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 7 and not done.stdout and len(done.stderr.splitlines()) == 1
    assert before == (file.read_bytes() if file.exists() else None)
