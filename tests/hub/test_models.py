"""`kvchat models` and `models pull`, against a server on this machine. Nothing else is asked."""

import json
import os
import shutil
import sys
from pathlib import Path

import pexpect
import pytest

from tests.support import gguf_files
from tests.support.hub import serving
from tests.support.program import ONE_THREAD, ROOT, kvchat


@pytest.fixture
def repository(tmp_path, chat_folder):
    folder = tmp_path / "repository"
    shutil.copytree(chat_folder("byte-level", "chatml"), folder)
    (folder / "README.md").write_text("not needed")
    (folder / "pytorch_model.bin").write_text("never loaded")
    return folder


@pytest.fixture
def place(tmp_path):
    """An environment of its own."""
    return {
        "HF_HOME": str(tmp_path / "hf"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "NO_PROXY": "*",
        "no_proxy": "*",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": "",
    }


def test_a_model_is_pulled_listed_and_used(repository, place):
    with serving(repository) as hub:
        done = kvchat("models", "pull", "org/tiny", "-y", HF_ENDPOINT=hub.address, **place)
        assert done.returncode == 0, done.stderr
        assert "pytorch_model.bin" not in hub.fetched and "README.md" not in hub.fetched
        assert hub.fetched[0] == "config.json", "checked before the weights come"
        count = len(hub.fetched)
        again = kvchat("models", "pull", "org/tiny", "-y", HF_ENDPOINT=hub.address, **place)
        assert again.returncode == 0 and len(hub.fetched) == count, "nothing comes twice"
    assert b"org/tiny" in kvchat("models", **place, COLUMNS="200").stdout
    done = kvchat("-m", "org/tiny", "-p", "Who?", "-n", "3", "--json", **place)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "tiny"


def test_a_broken_line_is_gone_on_with(repository, place):
    weights = repository / "model.safetensors"
    weights.write_bytes(bytes(25_000_000))  # the library keeps what came in steps of 10 MB
    with serving(repository, break_at=22_000_000) as hub:
        done = kvchat("models", "pull", "org/tiny", "-y", HF_ENDPOINT=hub.address, **place)
        if done.returncode:  # the library gave up: pulling again goes on
            done = kvchat("models", "pull", "org/tiny", "-y", HF_ENDPOINT=hub.address, **place)
        assert done.returncode == 0, done.stderr
        assert hub.ranges and hub.ranges[0] != "bytes=0-", "the rest was asked for, not all"
    found = next((Path(place["HF_HOME"]) / "hub").glob("**/model.safetensors"))
    assert found.read_bytes() == weights.read_bytes()


PARTS = ["Tiny-Q2_K-00001-of-00002.gguf", "Tiny-Q2_K-00002-of-00002.gguf"]


@pytest.fixture
def formats(tmp_path):
    """A repository of GGUF files in several formats, one of them in parts."""
    folder = tmp_path / "formats"
    names = ("Q8_0", "Q4_K_M", "Q2_K-00001-of-00002", "Q2_K-00002-of-00002")
    for layers, name in enumerate(names, 1):  # files alike would be fetched once
        gguf_files.llama(folder / f"Tiny-{name}.gguf", layers=layers)
    gguf_files.llama(folder / "mmproj-Tiny-F16.gguf")
    return folder


@pytest.mark.parametrize(
    ("asked", "fetched"),
    [
        (["org/tiny"], ["Tiny-Q4_K_M.gguf"]),
        (["org/tiny:Q8_0"], ["Tiny-Q8_0.gguf"]),
        (["org/tiny:q2_k"], PARTS),
        (["org/tiny", "--file", "Tiny-Q8_0.gguf"], ["Tiny-Q8_0.gguf"]),
    ],
)
def test_one_format_of_a_repository_is_pulled(formats, place, asked, fetched):
    with serving(formats) as hub:
        done = kvchat("models", "pull", *asked, "-y", HF_ENDPOINT=hub.address, **place)
        assert done.returncode == 0 and hub.fetched == fetched, done.stderr
    assert (b"Q4_K_M of 3" in done.stderr) == (asked == ["org/tiny"])


def test_a_format_that_is_not_there_is_refused_with_those_that_are(formats, place):
    with serving(formats) as hub:
        for asked in (["org/tiny:Q5_K_M"], ["org/tiny", "--file", "x.gguf"]):
            done = kvchat("models", "pull", *asked, "-y", HF_ENDPOINT=hub.address, **place)
            assert done.returncode == 3 and b"Q8_0" in done.stderr and not hub.fetched


def test_an_architecture_that_is_not_read_is_refused_before_it_comes(formats, place):
    with serving(formats) as hub:
        hub.architecture = "gemma4"
        done = kvchat("models", "pull", "org/tiny", "-y", HF_ENDPOINT=hub.address, **place)
        assert done.returncode == 3 and b"gemma4" in done.stderr and not hub.fetched


def test_a_sum_that_differs_removes_the_file(repository, place):
    with serving(repository) as hub:
        hub.wrong = True
        done = kvchat("models", "pull", "org/tiny", "-y", HF_ENDPOINT=hub.address, **place)
        assert done.returncode == 3 and b"sha256" in done.stderr, done.stderr
        assert not list((Path(place["HF_HOME"]) / "hub").glob("**/model.safetensors"))
        hub.wrong, count = False, hub.fetched.count("model.safetensors")
        done = kvchat("models", "pull", "org/tiny", "-y", HF_ENDPOINT=hub.address, **place)
        assert done.returncode == 0 and hub.fetched.count("model.safetensors") == count + 1


def test_the_table_as_json_and_at_80_columns(repository, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(repository, tmp_path / "models" / "mine")
    shutil.copytree(repository, tmp_path / "models" / "broken")
    raw = json.loads((repository / "config.json").read_text())
    (tmp_path / "models" / "broken" / "config.json").write_text(
        json.dumps(raw | {"model_type": "gemma4"})
    )
    gguf_files.llama(tmp_path / "models" / "Small-F16.gguf", layers=3, window=2048, chat=False)
    cut = gguf_files.llama(tmp_path / "models" / "cut.gguf")
    cut.write_bytes(cut.read_bytes()[:-40])
    here = place | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    found = json.loads(kvchat("models", "--json", **here).stdout)
    listed = {each["name"]: each for each in found["models"]}
    assert listed["mine"]["fits"] == "yes" and listed["mine"]["reason"] == ""
    assert listed["mine"]["bytes"] > 0 < listed["mine"]["needed"] < found["free"]
    assert "gemma4" in listed["broken"]["reason"] and listed["broken"]["fits"] == ""
    small = listed["Small-F16"]
    assert (small["family"], small["format"], small["window"]) == ("llama", "F16", 2048)
    assert small["fits"] == "yes" and not small["chat"] and small["parameters"] > 80_000
    assert small["held"] == 2 * small["parameters"]
    assert "cut short" in listed["cut"]["reason"]
    assert len(found["downloads"]) >= 5
    assert all(each["licence"] and each["needed"] > 0 for each in found["downloads"])
    text = kvchat("models", COLUMNS="80", **here).stdout.decode()
    assert max(map(len, text.splitlines())) <= 80 and "gemma4" in text
    text = kvchat("models", "pull", COLUMNS="80", **here).stdout.decode()
    assert max(map(len, text.splitlines())) <= 80 and "Apache-2.0" in text


@pytest.mark.parametrize(
    ("name", "part", "code"),
    [
        ("org/gated", "accept", 3),
        ("org/nothing", "private", 3),
        ("nonsense", "org/repo", 2),
    ],
)
def test_what_cannot_be_pulled(repository, place, name, part, code):
    with serving(repository) as hub:
        done = kvchat("models", "pull", name, "-y", HF_ENDPOINT=hub.address, **place)
    text = done.stderr.decode()
    assert done.returncode == code and part in text and "Traceback" not in text, text


def test_no_connection_is_said_without_numbers_of_the_system(place):
    closed = "http://127.0.0.1:9"  # discard: nobody listens
    done = kvchat("models", "pull", "org/tiny", "-y", HF_ENDPOINT=closed, **place)
    text = done.stderr.decode()
    assert done.returncode == 3 and closed in text and "Errno" not in text, text
    assert text.count("try:") == 2


def test_nothing_is_downloaded_unasked(repository, place):
    with serving(repository) as hub:
        done = kvchat("models", "pull", "org/tiny", HF_ENDPOINT=hub.address, **place)
        assert done.returncode == 2 and b"-y" in done.stderr and not hub.fetched
        done = kvchat("-m", "org/tiny", "-p", "x", HF_ENDPOINT=hub.address, **place)
        assert done.returncode == 3 and b"models pull org/tiny" in done.stderr
        assert not hub.fetched


def test_an_unsupported_model_is_refused_before_its_weights_come(repository, place):
    raw = json.loads((repository / "config.json").read_text())
    (repository / "config.json").write_text(json.dumps(raw | {"model_type": "gemma4"}))
    with serving(repository) as hub:
        done = kvchat("models", "pull", "org/tiny", "-y", HF_ENDPOINT=hub.address, **place)
        assert done.returncode == 3 and b"gemma4" in done.stderr
        assert "model.safetensors" not in hub.fetched


def test_no_server_and_offline_mode(place):
    done = kvchat("models", "pull", "a/b", "-y", HF_ENDPOINT="http://127.0.0.1:9", **place)
    assert done.returncode == 3 and b"pull again" in done.stderr, done.stderr
    offline = place | {"HF_HUB_OFFLINE": "1"}
    done = kvchat("models", "pull", "a/b", "-y", HF_ENDPOINT="http://127.0.0.1:9", **offline)
    assert done.returncode == 3 and b"HF_HUB_OFFLINE" in done.stderr, done.stderr


@pytest.mark.parametrize("answer", ["y", "n"])
def test_a_model_that_is_missing_is_offered_at_a_terminal(repository, place, tmp_path, answer):
    with serving(repository) as hub:
        code = "import sys; from kvchat.__main__ import main; main()"
        child = pexpect.spawn(
            sys.executable,
            ["-c", code, "-m", "org/tiny", "--no-save", "--prompt-cache", "off"],
            env=os.environ | ONE_THREAD | place | {"HF_ENDPOINT": hub.address, "TERM": "dumb"},
            cwd=str(ROOT),
            timeout=60,
        )
        child.expect(r"org/tiny: \d+ files, .*download .*y/N")
        assert not hub.fetched, "it was asked for first"
        child.send(answer)
        if answer == "y":
            child.expect(r"snapshots.*> ")
            child.send("\x04")
            assert "model.safetensors" in hub.fetched
        else:
            child.expect("models pull org/tiny")
            assert not hub.fetched
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == (0 if answer == "y" else 3)
