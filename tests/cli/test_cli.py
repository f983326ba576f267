"""The command line as a process: quick commands, exit codes, pipes, JSON."""

import json
import os
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from kvchat import __version__
from kvchat.cli.methods_view import details
from kvchat.engine.methods import METHODS
from kvchat.engine.methods.specs import options
from tests.support import program
from tests.support.forked import kvchat
from tests.support.program import SAMPLE

QUESTION = "What is the home of Mara Voss?"


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("The mill stands by the river. " * 10)
    return str(path)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["chat", "--help"]])
def test_quick_commands_import_nothing_heavy(arguments):
    code = (
        "import sys; from kvchat.cli.main import run; code = run(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'prompt_toolkit'} & set(sys.modules);"
        "print('HEAVY', sorted(heavy)); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("HEAVY []\n")


def test_version_and_methods():
    assert kvchat("--version").stdout.decode() == f"kvchat {__version__}\n"
    table = kvchat("methods", COLUMNS="250").stdout.decode().partition("\n\n")[0].splitlines()
    for name, entry in METHODS.items():
        [line] = [each for each in table if each.partition(" ")[0].rstrip("*") == name]
        assert all(text in line for text in (entry.idea, entry.cost, entry.needs))
        told = "\n".join(details(name))
        assert entry.paper in told and all(f"{option}=" in told for option in options(name))
    narrow = kvchat("methods", COLUMNS="80").stdout.decode()
    assert max(map(len, narrow.splitlines())) <= 80
    assert all(entry.idea in narrow for entry in METHODS.values())
    # in the chat's list: a mark, the name, the idea, in a line of 80 columns
    assert max(len(e.idea) for e in METHODS.values()) + max(map(len, METHODS)) + 3 <= 80
    one = kvchat("methods", "adakv").stdout.decode()
    assert "  window    32" in one and "adakv@paper: " in one


def test_answer_alone_is_on_stdout(story):
    done = program.kvchat(story, "-p", QUESTION, "-n", "8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"\n") == 1 and done.stdout.strip()
    assert b"no model given" not in done.stderr


def test_json_is_one_object_per_question(story):
    questions = ("-p", QUESTION, "-p", "Who?", "--weights", "int8", "--method", "kvzip")
    done = kvchat("-m", "demo", "--file", story, *questions, "--json", "-n", "5")
    lines = done.stdout.decode().splitlines()
    assert len(lines) == 2
    for line in lines:
        report = json.loads(line)
        assert report["schema"] == 1 and report["model"] == "demo"
        assert report["usage"]["completion_tokens"] <= 5
        assert report["kv"]["method"] == "kvzip" and report["kv"]["budget"] == "25%"
        assert report["kv"]["kept_fraction"] == pytest.approx(0.25, abs=0.02)
        assert report["memory"]["weights"] == "int8" and report["truncated"] is None
        assert 1.1e6 < report["memory"]["weights_bytes"] < 1.2e6
    first, second = map(json.loads, lines)
    assert first["usage"]["document_tokens"] == second["usage"]["document_tokens"]


def test_piped_text_is_the_document(story):
    text = Path(story).read_bytes()
    piped = json.loads(kvchat("-p", QUESTION, "--json", "-n", "5", stdin=text).stdout)
    named = json.loads(kvchat(story, "-p", QUESTION, "--json", "-n", "5").stdout)
    assert piped["usage"] == named["usage"] and piped["answer"] == named["answer"]


def test_several_questions_are_independent(story):
    alone = kvchat(story, "-p", QUESTION, "-n", "12").stdout
    after = kvchat(story, "-p", "Who is there?", "-p", QUESTION, "-n", "12").stdout
    assert after.endswith(alone)


def test_without_terminal_and_prompt_it_is_a_usage_error():
    done = kvchat()
    assert done.returncode == 2 and b"-p" in done.stderr


def test_long_document_is_refused_with_numbers(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("The valley is wide. " * 20_000)
    done = kvchat(str(path), "-p", "Why?", "--json")
    assert done.returncode == 5
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "too_long" and error["needed"] > error["limit"] == 32768


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["-f", "/no/such/file"], 4, "/no/such/file"),
        (["-f", str(SAMPLE.parents[1] / "kvchat")], 4, "no document"),
        (["-m", "/no/such/model"], 3, "no model"),
        (["-m", "/"], 3, "config.json"),
        (["-m", str(SAMPLE)], 3, "is no model"),
        (["--method", "adakw"], 2, "adakv"),
        (["--method", "adakv:windo=3"], 2, "window"),
        (["--method", "adakv:window=x"], 2, "whole number"),
        (["--method", "full", "-O", "window=3"], 2, "no option"),
        (["--budget", "0.25"], 2, "25%"),
        (["--budget", "0%"], 2, "outside"),
        (["--budget", "120%"], 2, "outside"),
        (["--budget", "lots"], 2, "not a budget"),
        (["--temp", "-1"], 2, "--temp"),
        (["--top-p", "0"], 2, "--top-p"),
        (["--max-tokens", "0"], 2, "--max-tokens"),
        (["--threads", "0"], 2, "--threads"),
        (["--device", "tpu"], 2, "tpu"),
        (["--dtype", "int3"], 2, "int3"),
        (["--weights", "int3"], 2, "int3"),
        (["--attention", "sdpa"], 2, "not an attention backend"),
        (["--attention", "flash"], 7, "flash-attn"),
        (["--weights", "bf16", "--dtype", "f32"], 2, "contradict"),
        (["--ctx-size", "999999"], 2, "32,768"),
        (["--nonsense"], 2, "--nonsense"),
        (["--method", "full", "--budget", "25%"], 2, "takes no budget"),
        (["--method", "adakv:kernel=99999999999999999999"], 2, "kernel"),
        (["--seed", "9" * 26], 2, "--seed"),
        (["--encoding", "undefined", "-f", str(SAMPLE)], 2, "encoding"),
        (["-f", "~nobody-has-this-name/x"], 4, "nobody-has-this-name"),
        (["-m", "x" * 5000], 3, "not a model"),
        (["-v", "-f", "/no/such/file"], 4, "/no/such/file"),
    ],
)
def test_bad_input_has_one_message_and_its_exit_code(arguments, code, part):
    done = kvchat("-p", "Why?", *arguments)
    text = done.stderr.decode()
    assert done.returncode == code, text
    assert part in text and ("Traceback" in text) == ("-v" in arguments)
    assert text.count("error:") == 1 and done.stdout == b""


def test_impossible_budget_in_bytes(story):
    done = kvchat(story, "-p", "Why?", "--budget", "100B")
    assert done.returncode == 2 and b"or more" in done.stderr


def test_an_empty_pipe_is_an_error_and_dev_null_is_not():
    assert kvchat("-p", "Why?", stdin=b"").returncode == 4
    assert kvchat("-p", "Why?", stdin=b" \n").returncode == 4
    assert kvchat("-p", "Why?", "-n", "3").returncode == 0


def test_json_errors_carry_the_ways_out():
    error = json.loads(kvchat("-m", "nope", "-p", "Why?", "--json").stdout)["error"]
    assert error["code"] == "model" and error["tries"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-q", "STORY", "-p", QUESTION, "-p", QUESTION],
        ["--help"],
        ["-m", "no", "-p", "x", "--json"],
    ],
)
def test_closed_pipe_is_141_and_silent(story, arguments):
    with subprocess.Popen(
        [sys.executable, "-m", "kvchat", *(story if a == "STORY" else a for a in arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        errors = child.stderr.read()
    assert child.returncode == 141
    assert b"Traceback" not in errors and b"Broken" not in errors


def test_ctrl_c_while_reading_is_130_without_a_traceback():
    with subprocess.Popen(
        [sys.executable, "-m", "kvchat", "-v", str(SAMPLE), "-p", "Why?", "--prefill-chunk", "32"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if b"prefill" in line and b"%" in line:
                break
        os.kill(child.pid, signal.SIGINT)
        rest = child.stderr.read()
    assert child.returncode == 130
    assert b"Traceback" not in rest


def our_first_line(process_id):
    """Wait until Python's own handler of Ctrl-C is gone: before that, Python itself dies."""
    caught = re.compile(r"SigCgt:\s*([0-9a-f]+)")
    status = Path(f"/proc/{process_id}/status")
    for wanted in (True, False):
        while (
            bool(int(caught.search(status.read_text())[1], 16) & 1 << signal.SIGINT - 1) != wanted
        ):
            time.sleep(0.0005)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks at the signals in /proc")
@pytest.mark.parametrize("delay", [0, 0.1, 0.6, 1.5])
def test_ctrl_c_while_starting_is_130_without_a_traceback(delay):
    with subprocess.Popen(
        [sys.executable, "-m", "kvchat", str(SAMPLE), "-p", "Why?", "--prefill-chunk", "1"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stderr is not None
        our_first_line(child.pid)
        time.sleep(delay)  # wherever that falls: in an import, the plan, the reading
        os.kill(child.pid, signal.SIGINT)
        errors = child.stderr.read()
    assert child.returncode in (130, -signal.SIGINT)  # a shell shows 130 for either
    assert b"Traceback" not in errors


def test_bits_and_budgets_reach_the_cache(story):
    def kept(*arguments: str) -> dict:
        done = kvchat(story, "-p", QUESTION, "-n", "2", "--json", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["kv"]

    plain, few = kept("--method", "full"), kept("--method", "full", "--kv-bits", "8")
    assert few["options"]["bits"] == 8 and few["kept_fraction"] == plain["kept_fraction"] == 1
    assert few["bytes"] < plain["bytes"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--kv-bits", "3"], b"--kv-bits"),
        (["--method", "adakv", "--budget", "20"], b"leaves 20 per head"),
        (["--method", "adakv", "--tail-budget", "40"], b"--tail-budget 74"),
        (["--method", "full", "--tail-budget", "100"], b"full keeps every entry"),
        (["--method", "kvmerger:mode=eps", "--budget", "30%"], b"finds its own size"),
        (["--method", "h2o:recent=2"], b"recent=2"),
        (["--tail", "cascade:1x64"], b"--tail cascade:4x512"),
        (["--tail", "cascade:4x90000"], b"360,000"),
        (["--tail", "cascade:2x64", "--method", "kcache"], b"kcache keeps every entry"),
        (["--tail", "cascade:2x64", "--tail-budget", "99"], b"--tail-budget 99"),
        (["--method", "corm:mode=rule", "--budget", "30%"], b"finds its own size"),
    ],
)
def test_what_a_method_cannot_do_is_said_before_anything_is_read(story, arguments, said):
    done = kvchat(story, "-p", QUESTION, *arguments)
    assert done.returncode == 2 and said in done.stderr
    assert b"try: " in done.stderr and b"read " not in done.stderr and done.stdout == b""


@pytest.mark.parametrize("flags", [["-v"], ["-qv"], ["--quiet", "-v"]])
def test_flags_before_a_command_do_not_make_it_a_document(flags):
    done = kvchat(*flags, "config", "path")
    assert done.returncode == 0 and done.stdout.decode().strip().endswith("config.toml")


def test_flags_before_chat_are_the_chat_s(story):
    done = kvchat("-q", "chat", story, "-p", "Why?", "-n", "2")
    assert done.returncode == 0 and done.stderr == b""


@pytest.mark.parametrize(
    "spec", ["adakv:nonsense=3", "nonsense", "adakv:window=0", "adakv:bits=3", "kvmerger@99"]
)
def test_a_plan_refuses_what_a_chat_refuses(spec):
    done = kvchat("plan", "-m", "demo", "--method", spec)
    assert done.returncode == 2 and done.stdout == b""


def test_doctor_finds_what_a_chat_would_refuse(tmp_path, monkeypatch):
    monkeypatch.delenv("KVCHAT_MODEL")
    (tmp_path / "kvchat").mkdir()
    for text in ('budget = "abc"', 'method = "nope"', 'model = "/no/such/model"'):
        (tmp_path / "kvchat" / "config.toml").write_text(f"[defaults]\n{text}\n")
        assert kvchat("doctor", XDG_CONFIG_HOME=str(tmp_path)).returncode == 7, text


def test_an_empty_question_and_a_plan_that_nothing_fits(story):
    assert kvchat(story, "-p", " ").returncode == 2
    said = kvchat("plan", "-m", "demo", "--fit", "1KiB").stdout.decode()
    assert "nothing fits" in said


def test_ctrl_c_while_torch_loads_gives_the_terminal_back():
    """The first line is there before torch: keys are not echoed by then, and must be afterwards."""
    terminal, theirs = os.openpty()
    before = termios.tcgetattr(theirs)
    child = subprocess.Popen(
        [sys.executable, "-m", "kvchat", "-m", "demo", str(SAMPLE)],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    said = b""
    while b"kvchat" not in said:
        said += os.read(terminal, 4096)
    assert termios.tcgetattr(theirs)[3] != before[3], "the press comes while echo is off"
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 130
    assert termios.tcgetattr(theirs) == before
    os.close(terminal), os.close(theirs)
