"""The wheel carries the demo model and works away from the checkout."""

import os
import subprocess
import sys
import zipfile

from tests.support.program import ROOT

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]


def test_wheel_has_the_demo_model_and_answers(tmp_path):
    offline = ["--no-deps", "--no-index"]
    built = subprocess.run(
        [*PIP, "wheel", "--no-build-isolation", *offline, "-w", str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("kvchat-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "kvchat/demo_model/model.safetensors" in names
    assert {"kvchat/samples/valley.txt", "kvchat/samples/skerry.jsonl"} <= {*names}
    assert sum(name.endswith(".gate") for name in names) == 2
    assert "kvchat/calibrate/texts/prose-1.txt" in names
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "kvchat").rglob("*.py")} <= {*names}
    assert not any("recipe" in name or name.startswith("tests/") for name in names)

    site = tmp_path / "site"
    install = [*PIP, "install", "--no-compile", *offline, "--target", str(site), str(wheel)]
    subprocess.run(install, check=True)
    away = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(site)}, "text": True}
    run = subprocess.run(
        # machine code would have to be made for this copy of the sources
        [site / "bin" / "kvchat", "-p", "Who?", "-n", "4", "--json", "--kernels", "torch"],
        input="The mill stands by the river.",
        capture_output=True,
        **away,
    )
    assert run.returncode == 0, run.stderr
    find = "from kvchat.hub.find import demo_model; print(demo_model().path)"
    where = subprocess.check_output([sys.executable, "-c", find], **away)
    assert where.strip() == str(site / "kvchat" / "demo_model")
