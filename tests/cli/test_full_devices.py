"""Devices that are full: what was asked for and is lost is an error, what is beside it is not."""

import json
import subprocess
import sys

import pytest

from tests.support.forked import kvchat

FULL = "No space left on device"


@pytest.fixture
def asks(tmp_path):
    """Arguments of a run with a document and a question."""
    story = tmp_path / "story.txt"
    story.write_text("The mill stands by the river. " * 10)
    return [str(story), "-p", "Where is the mill?", "-n", "4", "--method", "full"]


@pytest.mark.parametrize("form", [[], ["--json"], ["--jsonl"]])
def test_an_answer_that_cannot_be_written_is_an_error_in_a_line(asks, form):
    done = kvchat(*asks, *form, full=(1,))
    said = done.stderr.decode()
    assert done.returncode == 4 and said.count(FULL) == 1 and "Traceback" not in said


def test_an_error_that_cannot_be_written_as_json_is_said(tmp_path):
    done = kvchat(str(tmp_path / "nothing.txt"), "-p", "Who?", "--json", full=(1,))
    assert done.returncode == 4 and b"nothing.txt" in done.stderr


def test_notices_that_cannot_be_written_cost_no_answer(asks):
    whole = kvchat(*asks, "-v")
    done = kvchat(*asks, "-v", full=(2,))
    assert (done.returncode, done.stdout) == (0, whole.stdout) and whole.stdout and whole.stderr
    assert kvchat("nothing.txt", "-p", "Who?", full=(2,)).returncode == 4


def test_a_log_that_cannot_be_written_is_told_once(asks):
    done = kvchat(*asks, "--json", "--log-file", "/dev/full")
    assert done.returncode == 0 and "Logging error" not in done.stderr.decode()
    warnings = json.loads(done.stdout)["warnings"]
    assert len([text for text in warnings if FULL in text]) == 1


@pytest.mark.parametrize("arguments", [["--version"], ["methods"], ["cache", "list"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_commands_say_it_too_and_the_interpreter_adds_nothing(arguments, unbuffered, tmp_path):
    environment = {"PYTHONUNBUFFERED": unbuffered, "XDG_CACHE_HOME": str(tmp_path)}
    with open("/dev/full", "w") as device:
        done = subprocess.run(
            [sys.executable, "-m", "kvchat", *arguments],
            stdout=device, stderr=subprocess.PIPE, timeout=60, env=environment,
        )  # fmt: skip
    said = done.stderr.decode()
    assert done.returncode == 4 and FULL in said and len(said.splitlines()) == 2
