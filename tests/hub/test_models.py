"""`kvchat models` and `models pull`, against a server on this machine. Nothing else is asked."""

import json
import os
import shutil
import sys
from pathlib import Path

import pexpect
import pytest

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
