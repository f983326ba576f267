"""A sample of the kernels compiles for absent cards; `make test-compile` compiles all of them."""

import os
import subprocess
import sys
from pathlib import Path

from kvchat.kernels import attention, low_bits, mass, merge, norm_rope, place, pq, retrieval
from tests.kernels import specimens


def test_a_sample_fits_its_cards():
    script = Path(__file__).with_name("compiling.py")
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", script, "--sample"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 fail" in done.stdout


def test_every_kernel_has_a_specimen(monkeypatch):
    """What is launched by nobody is compiled by nobody."""
    launched, kernels = set(), {}
    for module in (attention, low_bits, mass, merge, norm_rope, place, pq, retrieval):
        source = Path(module.__file__).read_text("utf-8")
        for name, value in vars(module).items():
            if f"{name}[(" in source and hasattr(value, "fn"):
                kernels[f"{module.__name__}.{name}"] = module, name

    class Noted(str):
        def __getitem__(self, grid):
            launched.add(str(self))
            return lambda *args, **options: None

    for path, (module, name) in kernels.items():
        monkeypatch.setattr(module, name, Noted(path))
    for specimen in specimens.SPECIMENS:
        specimen.launch()
    assert len(kernels) == 19 and launched == kernels.keys()
