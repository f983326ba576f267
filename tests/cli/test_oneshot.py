"""One shot and scripting: JSON events, prompts from files, cuts, named chats, surroundings."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kvchat.engine import sizes
from tests.support import program
from tests.support.forked import kvchat

QUESTION = "What is the home of Mara Voss?"


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("The mill stands by the river. " * 10)
    return str(path)


def events(done):
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def test_jsonl_tells_everything_that_happens(story):
    done = kvchat(story, "-p", QUESTION, "-p", "Who?", "--jsonl", "-n", "6", "-m", "demo")
    found = events(done)
    kinds = [event["event"] for event in found]
    assert kinds[0] == "load" and kinds[-1] == "done" and kinds.count("done") == 2
    reading = [event for event in found if event["event"] == "prefill"]
    assert reading[0]["processed"] == 0 and reading[-1]["processed"] == reading[-1]["total"]
    assert all(e["time_ms"] >= 0 and e["layers"] == 4 for e in reading)
    first = kinds.index("done")
    texts = [e["text"] for e in found[:first] if e["event"] == "token"]
    assert "".join(texts) == found[first]["answer"]
    [error] = events(kvchat("-m", "nope", "-p", "x", "--jsonl"))
    assert error["error"]["code"] == "model"


def test_sources_are_pages_in_the_json_and_beside_the_answer(tmp_path):
    path = tmp_path / "pages.txt"
    path.write_text("The mill stands by the river. " * 9 + "\fThe boat of Mara Voss is Albatross.")
    asked = [str(path), "-p", "What is the boat of Mara Voss?", "-m", "demo"]
    [found] = events(kvchat(*asked, "--json"))
    [source] = found["sources"]
    assert source["label"] == "p. 2" and source["document"] == str(path)
    start = path.read_text().replace("\f", "\n\n").index("The boat") - 1
    assert abs(source["start"] - start) <= 1 and source["end"] - source["start"] == 35
    [found] = events(kvchat(*asked, "--json", "--no-sources"))
    assert found["sources"] == []
    done = kvchat(*asked, "-v")
    assert b"[p. 2]" in done.stderr and b"p. 2" not in done.stdout


def test_prompts_from_a_file_and_system_text(story, tmp_path):
    (tmp_path / "prompts").write_text(f"{QUESTION}\n\nWho?\n")
    (tmp_path / "system").write_text("Be brief.\n")
    arguments = [story, "--prompt-file", str(tmp_path / "prompts"), "-n", "4", "--json"]
    plain = events(kvchat(*arguments))
    more = events(kvchat(*arguments, "--system-file", str(tmp_path / "system")))
    assert len(plain) == len(more) == 2
    assert more[0]["usage"]["prompt_tokens"] > plain[0]["usage"]["prompt_tokens"]
    assert more[0]["usage"]["document_tokens"] == plain[0]["usage"]["document_tokens"]
    (tmp_path / "prompts").write_text("\n")
    assert kvchat(*arguments).returncode == 4


@pytest.mark.parametrize("policy", ["head", "tail", "middle"])
def test_a_cut_is_in_the_json_and_in_a_warning(tmp_path, policy):
    path = tmp_path / "long.txt"
    path.write_text("The valley is wide. " * 500)
    arguments = [str(path), "-p", "Why?", "-n", "2", "-c", "1k", "--overflow", policy]
    [found] = events(kvchat(*arguments, "--json"))
    cut = found["truncated"]
    assert cut["policy"] == policy and cut["dropped_tokens"] > 0
    assert found["usage"]["document_tokens"] <= 750
    assert any("were cut" in warning for warning in found["warnings"])
    assert b"were cut" in kvchat(*arguments).stderr


def test_a_short_document_is_kept_whole_and_that_is_said(tmp_path, monkeypatch):
    """Another method was asked for: a script must see that it did not run."""
    monkeypatch.setattr(sizes, "SMALL", 2000)
    path = tmp_path / "short.txt"
    path.write_text("The valley is wide. " * 20)
    asked = [str(path), "-p", "Why?", "-n", "2", "--json"]
    [plain], [found] = (events(kvchat(*asked, *more)) for more in ((), ("--budget", "10%")))
    assert found["kv"]["method"] == plain["kv"]["method"] == "full"
    assert not plain["warnings"] and len(found["warnings"]) == 1


def saved_chat_commands(folder, place):
    """The commands of `kvchat sessions` on the chat `mine` of two turns; it is called so again."""

    def told(*arguments):
        done = kvchat("sessions", *arguments, **place)
        return done.returncode, (done.stdout or done.stderr).decode()

    assert told("show", "mine")[1].count("\n> ") == 2
    file = folder / "out.json"
    assert told("export", "mine", str(file)) == (0, f"2 turns written to {file}\n")
    found = json.loads(file.read_text())
    assert [turn["question"] for turn in found["turns"]] == [QUESTION, "And?"]
    assert told("export", "mine", str(file))[0] == 4, "nothing is overwritten"
    assert told("export", "mine", "x.doc")[0] == 2
    [saved] = Path(place["XDG_STATE_HOME"]).rglob("sessions/*.jsonl")
    with saved.open("a") as chat:
        chat.write('{"event": "turn", "quest')  # a process that died in the midst of a line
    assert told("rename", "mine", "yet another")[0] == 0
    assert told("show", "yet another")[1].count("\n> ") == 2
    assert told("show", "mine")[0] == 8 and told("rename", "mine", "x")[0] == 8
    assert told("rename", "yet another", "/")[0] != 0
    assert told("rename", "yet another", "mine")[0] == 0
    code, text = told("rename", "mine")
    assert code == 2 and "kvchat sessions rename --help" in text
    code, text = told("nonsense")
    assert code == 2 and "kvchat sessions --help" in text


@pytest.mark.parametrize("command", ["sessions", "config", "cache"])
def test_a_group_alone_is_its_help(command):
    done = kvchat(command)
    assert done.returncode == 0 and b"Usage" in done.stdout and not done.stderr


def test_a_piped_question_about_named_documents(story):
    asked = kvchat("-f", story, "-n", "6", stdin=QUESTION.encode())
    assert asked.returncode == 0
    assert asked.stdout == kvchat("-f", story, "-n", "6", "-p", QUESTION).stdout
    for empty in (b"", b" \n"):
        assert kvchat("-f", story, stdin=empty).returncode == 2


def test_a_question_in_the_place_of_a_document_is_named(story):
    text = Path(story).read_bytes()
    for given in ({"stdin": text}, {}):
        done = kvchat(QUESTION, **given)
        assert done.returncode == 4 and f'-p "{QUESTION}"' in done.stderr.decode()
        assert not done.stdout


def test_a_pattern_and_a_folder_are_their_files(tmp_path):
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text("The mill stands by the river. ")
    both = [str(tmp_path / "a.md"), str(tmp_path / "b.md")]
    how = ["-p", QUESTION, "-n", "2", "--json"]
    [named] = events(kvchat(*both, *how))
    for given in (str(tmp_path / "*.md"), str(tmp_path)):
        assert events(kvchat(given, *how))[0]["usage"] == named["usage"]


def test_a_plan_of_several_lengths_shows_those_that_fit():
    asked = ["plan", "-m", "demo", "--tokens", "4k,32500,900k"]
    done = kvchat(*asked)
    assert done.returncode == 0 and b"4,000" in done.stdout and b"32,500" not in done.stdout
    assert b"32,500 and 900,000" in done.stderr
    assert b"recommended here for 4,000 tokens: full 100%" in done.stdout
    wide = kvchat("plan", "--dummy", "llama-3.1-8b", "--tokens", "100k", "--method", "full,kvzip")
    assert b"recommended here for 100,000 tokens: " in wide.stdout
    found = json.loads(kvchat(*asked, "--json").stdout)
    assert {plan["tokens"] for plan in found["plans"]} == {4000}
    assert found["too_long"] == [32500, 900000]
    none = kvchat("plan", "-m", "demo", "--tokens", "900k")
    assert none.returncode == 5 and not none.stdout
    bare = kvchat("plan", "-m", "demo", "--tokens", "4k", "--method", "less,kvzip")
    assert b"recommended here for 4,000 tokens: kvzip" in bare.stdout  # no maps were fitted
    assert b"calibrate" in bare.stderr
    read = kvchat("plan", "-m", "demo", "--tokens", "900k", "--overflow", "stream", "--json")
    assert {plan["tokens"] for plan in json.loads(read.stdout)["plans"]} == {900_000}


def test_a_document_that_exceeds_the_window_is_read_in_parts(tmp_path):
    """With the error that says so as a way out; the second time from the prompt cache."""
    asked = [str(program.SAMPLE), "-p", "What is the boat of Henrik Ingram?", "-c", "2048"]
    refused = kvchat(*asked)
    assert refused.returncode == 5 and b"--overflow stream" in refused.stderr
    asked += ["--overflow", "stream", "--budget", "50%", "--json", "--prompt-cache", "on"]
    asked += ["--prompt-cache-dir"]
    [first], [second] = (events(kvchat(*asked, str(tmp_path))) for _ in range(2))
    assert first["usage"]["document_tokens"] > 2 * 2048 and first["answer"] == second["answer"]
    assert first["timings"]["restore_ms"] == 0 < second["usage"]["cached_tokens"]
    assert first["kv"]["kept_fraction"] == pytest.approx(0.5, abs=0.01)


def test_named_chats_go_on_in_one_shot(story, tmp_path):
    place = {"XDG_STATE_HOME": str(tmp_path / "state")}
    first = kvchat(story, "-p", QUESTION, "--session", "mine", "-n", "6", **place)
    assert first.returncode == 0, first.stderr
    [second] = events(kvchat("-C", "-p", "And?", "-n", "4", "--json", **place))
    assert second["usage"]["cached_tokens"] > 0 and second["question"] == "And?"
    assert any("mine" in each and "story.txt" in each for each in second["warnings"])
    listed = kvchat("sessions", "list", **place).stdout.decode()
    assert "mine · 2 turns · demo · story.txt" in listed
    saved_chat_commands(tmp_path, place)
    assert kvchat("--resume", "yours", "-p", "x", **place).returncode == 8
    Path(story).write_text("Another text altogether. " * 10)
    changed = kvchat("--resume", "mine", "-p", "x", "-n", "2", **place)
    assert changed.returncode == 0 and changed.stderr.count(b"story.txt") == 1
    assert kvchat("sessions", "rm", "mine", **place).returncode == 0
    assert kvchat("-C", "-p", "x", **place).returncode == 8
    assert kvchat(story, "-p", "x", "-n", "2", "--no-save", **place).returncode == 0
    assert kvchat(story, "-p", "x", "-n", "2", "--json", **place).returncode == 0
    assert kvchat("-C", "-p", "x", **place).returncode == 8, "nothing was saved"


def test_a_run_is_a_chat_that_goes_on(story, tmp_path):
    """Its prompts are independent: the last one is the chat."""
    place = {"XDG_STATE_HOME": str(tmp_path / "state")}
    done = kvchat(story, "-p", QUESTION, "-p", "Who?", "-n", "4", **place)
    assert done.returncode == 0, done.stderr
    [found] = events(kvchat("-C", "-p", "And?", "-n", "3", "--json", **place))
    usage = found["usage"]
    assert usage["prompt_tokens"] > usage["document_tokens"] + 4 and found["question"] == "And?"
    assert any("story.txt" in each for each in found["warnings"]), "which chat it is"
    assert b"2 turns" in kvchat("sessions", "list", **place).stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--overflow", "shift"], "--overflow tail"),
        (["--stats", "loud"], "--stats"),
        (["--color", "blue"], "--color"),
        (["--loader", "word"], "--loader"),
        (["-c", "lots"], "--ctx-size"),
        (["--pages", "3"], "no pages"),
        (["-s", "x", "--system-file", "y"], "both"),
        (["--resume", "no such chat"], "sessions"),
        (["-r", "no such chat"], "sessions"),
    ],
)
def test_more_bad_input(story, tmp_path, arguments, part):
    done = kvchat(story, "-p", "Why?", *arguments, XDG_STATE_HOME=str(tmp_path / "state"))
    text = done.stderr.decode()
    assert done.returncode in (2, 8) and part in text and "Traceback" not in text, text


@pytest.mark.parametrize("flags", ["-qv", "-vq", "-vv", "--verbose"])
def test_every_way_of_saying_verbose_shows_tracebacks(flags):
    assert b"Traceback" in kvchat("-p", "x", flags, "-f", "/no/such/file").stderr
    assert b"Traceback" not in kvchat("-p", "-v is fine", "-f", "/no/such/file").stderr


def test_quiet_plain_and_colourless(story):
    quiet = kvchat(story, "-p", QUESTION, "-n", "4", "-q")
    assert quiet.stderr == b"" and quiet.stdout.count(b"\n") == 1
    for start, extra in (
        (kvchat, {"NO_COLOR": "1"}),
        (kvchat, {"TERM": "dumb"}),
        (program.kvchat, {"LANG": "C", "LC_ALL": "C"}),
    ):
        done = start(story, "-p", QUESTION, "-n", "4", "--plain", **extra)
        assert done.returncode == 0 and b"\x1b" not in done.stdout + done.stderr
    forced = kvchat(story, "-p", QUESTION, "-n", "4", "-v", "--color", "always")
    assert b"\x1b" in forced.stderr and b"\x1b" not in forced.stdout


@pytest.mark.parametrize("home", ["/nonexistent", "/proc"])
def test_without_a_home_to_write_to(story, home):
    places = dict.fromkeys(("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), f"{home}/x")
    done = kvchat(story, "-p", QUESTION, "-n", "3", HOME=home, **places)
    assert done.returncode == 0, done.stderr


def test_nan_weights_are_an_error(story, tmp_path, chat_folder):
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "broken"
    shutil.copytree(chat_folder("byte-level", "chatml"), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"].fill_(torch.nan)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    done = kvchat("-m", str(folder), story, "-p", "Why?")
    assert done.returncode == 3 and b"NaN" in done.stderr


def test_a_saved_method_takes_no_other_method_s_defaults_and_drops_what_is_retired(tmp_path, story):
    place = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_STATE_HOME": str(tmp_path / "state")}
    (tmp_path / "config" / "kvchat").mkdir(parents=True)
    toml = tmp_path / "config" / "kvchat" / "config.toml"
    toml.write_text("[methods.kvzip]\nchunk = 256\n")
    first = ["--method", "snapkv", "-O", "window=16", "--session", "a", "-n", "2", "-p", "Who?"]
    assert kvchat(story, *first, **place).returncode == 0
    [file] = (tmp_path / "state").rglob("*.jsonl")
    file.write_text(file.read_text().replace('"window": 16', '"window": 16, "refit": "bias"'))
    asked = ["-r", "a", "-n", "2", "-p", "Why?", "--json"]
    [found] = events(kvchat(*asked, **place))
    assert found["kv"]["options"]["window"] == 16 and any("refit" in w for w in found["warnings"])
    [found] = events(kvchat(*asked, "-O", "window=8", "--kv-bits", "4", **place))
    assert (found["kv"]["options"]["window"], found["kv"]["options"]["bits"]) == (8, 4)


def test_each_document_by_itself_over_one_process_and_two(tmp_path):
    """One that is too long is told in its place, and the others are answered."""
    texts = {
        "a": "The boat of Mara Voss is Albatross. ",
        "b": "The valley is wide. " * 600,
        "c": "The boat of Mara Voss is Dolphin. ",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text + "The mill stands by the river. " * 8)
    how = [
        str(tmp_path),
        "--each",
        "-p",
        "What is the boat of Mara Voss?",
        "-m",
        "demo",
        "-c",
        "1k",
    ]
    found = [kvchat(*how, "--devices", count) for count in "12"]
    for done in found:
        said = done.stdout.decode().split("\n\n")
        assert done.returncode == 5
        assert [text.splitlines()[0] for text in said] == [
            f"==> {tmp_path}/{name}.txt <==" for name in texts
        ]
        assert "Albatross" in said[0] and "Dolphin" in said[2] and "Albatross" not in said[2]
        assert len(said[1].splitlines()) == 1 and done.stderr.count(b"kvchat: error") == 1
    assert found[0].stdout == found[1].stdout and found[0].stderr == found[1].stderr
    first, second, third = events(kvchat(*how, "--json"))
    assert [first["documents"], third["documents"]] == [[f"{tmp_path}/{n}.txt"] for n in "ac"]
    assert second["error"]["code"] == "too_long"
    assert second["error"]["document"] == f"{tmp_path}/b.txt"
    assert kvchat(*how[:2]).returncode == kvchat(*how, "--continue").returncode == 2


def test_processes_that_torchrun_has_started(story):
    """As it sets the environment of each: the first answers, the other says nothing."""
    asked = [sys.executable, "-m", "kvchat", story, "-p", QUESTION, "-m", "demo", "-n", "5"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    about = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    both = [
        subprocess.Popen(
            asked, env=os.environ | program.ONE_THREAD | about | {"RANK": rank}, **pipes
        )
        for rank in "01"
    ]
    (answer, notices), (silence, other) = (each.communicate(timeout=120) for each in both)
    assert [each.returncode for each in both] == [0, 0], notices + other
    assert answer == kvchat(*asked[3:]).stdout and not silence and not other
