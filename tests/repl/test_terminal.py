"""The chat in a real terminal with scripted answers: stopping, resizing, pasting, dying, coming
back. Every wait is for a text."""

import json
import os
import re
import shutil
import signal

import pytest

from tests.support.terminal import DONE, PROMPT, TOOLBAR, Terminal

STORY = "The keeper counted ships. At night he counted the stars above the sea.\n" * 40
SHORT = "\n\n".join(f"{number}. item number {number}" for number in range(1, 13)) + "<|im_end|>"
LIST = "\n\n".join(f"{number}. item number {number}" for number in range(1, 41)) + "<|im_end|>"


@pytest.fixture(scope="module")
def model(tmp_path_factory, chat_folder):
    """The tiny model with a wide window."""
    folder = tmp_path_factory.mktemp("wide") / "tiny"
    shutil.copytree(chat_folder("byte-level", "chatml"), folder)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"max_position_embeddings": 8192}))
    return str(folder)


@pytest.fixture
def start(tmp_path, model):
    """`start(script, *arguments)`: a chat about the story."""
    (tmp_path / "story.txt").write_text(STORY)
    folder = model
    running = []

    def run(script, *arguments, until=PROMPT, story=True, **options):
        given = ["-m", folder, *(("-f", str(tmp_path / "story.txt")) if story else ()), *arguments]
        terminal = Terminal(given, tmp_path, script=script, **options)
        running.append(terminal)
        terminal.wait(until)
        return terminal

    yield run
    for terminal in running:
        terminal.child.close(force=True)


YES = ["Yes.<|im_end|>"]


def chats(tmp_path):
    folder = tmp_path / "state" / "kvchat" / "sessions"
    return [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("*.jsonl"))
    ]


def leave(terminal):
    """Ctrl-D, which waits for the prompt if that is not there yet."""
    terminal.send("\x04")
    return terminal.close()


def turns(events):
    return [(e["question"], e["answer"]) for e in events if e["event"] == "turn"]


def test_a_long_answer_is_drawn_once_and_in_order(start):
    terminal = start({"answers": [LIST], "token_seconds": 0.002})
    text = terminal.send("List them.\r", DONE)
    found = [int(n) for n in re.findall(r"item number (\d+)", text)]
    assert found == list(range(1, 41)), "nothing twice, nothing missing, nothing left behind"
    assert "Ctrl-C interrupts ▌" not in text and "tok · " not in text.split("List them.")[1][:-400]


def test_what_is_typed_ahead_waits_for_the_next_line(start):
    terminal = start({"answers": [SHORT, "Fine.<|im_end|>"], "token_seconds": 0.01})
    terminal.send("List them.\r", "item number 2")
    text = terminal.send("Really?", rf"{DONE}[^\n]*\s+> Really\?")
    assert text.count("Really?") == 1, "it is drawn where it belongs, and nowhere else"
    found = [int(n) for n in re.findall(r"item number (\d+)", text)]
    assert found == list(range(1, 13))
    terminal.send("\r", "Fine.")


def test_keys_that_edit_a_line_wait_for_it_too(start):
    """Ctrl-D and Backspace are keys of the next line, not of the terminal's own line editing."""
    terminal = start({"answers": [SHORT, "Fine.<|im_end|>"], "token_seconds": 0.01})
    terminal.send("List them.\r", "item number 2")
    terminal.send("Realz\x7fly?\r\x04")
    assert terminal.close() == 0
    assert "> Really?" in terminal.text() and "Fine." in terminal.text()


def test_ctrl_c_while_answering_keeps_what_came(start, tmp_path):
    terminal = start({"answers": [LIST, "Fine.<|im_end|>"], "token_seconds": 0.02})
    terminal.send("List them.\r", "item number 2")
    terminal.send("\x03", "interrupted")
    terminal.wait(r"ctx ~")
    terminal.send("And now?\r", "Fine.")
    terminal.wait(DONE)
    assert leave(terminal) == 0
    [events] = chats(tmp_path)
    (first, partial), second = turns(events)
    assert first == "List them." and "item number 2" in partial and "number 40" not in partial
    assert second == ("And now?", "Fine.")


def interrupted(start):
    script = {"chunk_seconds": 0.05, "answers": YES}
    terminal = start(script, "--prefill-chunk", "32", until=r"prefill .*layer \d/2")
    terminal.send("\x03", r"\[l\]ater / \[d\]rop")
    return terminal


@pytest.mark.parametrize("key", ["c", "\r"])
def test_a_prefill_goes_on_after_ctrl_c(start, key):
    terminal = interrupted(start)
    terminal.send(key, r"prefill .* tokens in")
    terminal.wait(PROMPT)
    terminal.send("/file\r", "from 0 on")


def test_a_prefill_that_is_dropped_leaves_a_chat_without_document(start, tmp_path):
    terminal = interrupted(start)
    terminal.send("d", "/file")
    terminal.wait(PROMPT)
    terminal.send("Are you there?\r", "Yes.")
    terminal.send("/file " + str(tmp_path / "story.txt") + "\r", "prefill .* tokens in")
    terminal.send("/reset\r", r"\[y/N\]")
    terminal.send("y", "attaches")
    terminal.send("/show window\r", "0 turns")


def test_a_reread_that_is_dropped_keeps_the_old_cache(start, tmp_path):
    script = {"chunk_seconds": 0.05, "answers": YES}
    terminal = start(script, "--prefill-chunk", "64", "-y")
    terminal.send("/budget 50%\r", r"prefill .*layer \d/2")
    terminal.send("\x03", r"\[d\]rop")
    terminal.send("d")
    terminal.send("/budget\r", r"budget 100% ")


def test_twice_ctrl_c_while_answering_breaks_off(start):
    terminal = start({"answers": ["x" * 500], "token_seconds": 0.3})
    terminal.send("Go.\r", r"▌ \d+ tok")
    terminal.send("\x03\x03", "interrupted")
    assert leave(terminal) == 0


def test_resize_while_answering_and_at_the_prompt(start):
    terminal = start({"answers": [SHORT], "token_seconds": 0.01})
    terminal.send("List them.\r", "item number 5")
    terminal.resize(50, 20)
    terminal.wait(DONE)
    terminal.wait(r"ctx \d+% +KV")
    terminal.resize(130, 24)
    terminal.wait(r"ctx .*▓|ctx .*░")
    assert leave(terminal) == 0


def test_a_megabyte_is_pasted_as_one_message(start, tmp_path):
    terminal = start({"answers": ["Read.<|im_end|>"]})
    terminal.paste("line of a long paste\n" * 50_000)
    terminal.wait(r"\[pasted 50,000 lines, 1,050,000 characters: [^]]+\]", 90)
    terminal.send("\r", r"\[a\]")
    terminal.send("s")
    terminal.wait("needs", 90)  # it does not fit; it was one question, none was run
    terminal.wait(PROMPT)
    terminal.send("/show window\r", "0 turns")


def test_suspend_and_go_on(start, tmp_path):
    """Under what a shell does with a job: without it the kernel would not stop anything."""
    script = {"answers": [SHORT, "Yes.<|im_end|>"], "token_seconds": 0.01}
    terminal = start(script, is_job=True)
    terminal.send("\x1a", "job 1 stopped")
    terminal.send("\r", r"stopped\s+> *\n")
    terminal.send("List them.\r", "item number 2")
    terminal.send("\x1a", "job 2 stopped")
    text = terminal.send("\r", DONE)
    terminal.wait(PROMPT)
    assert [int(n) for n in re.findall(r"item number (\d+)", text)] == list(range(1, 13))
    terminal.send("Still there?\r", "Yes.")
    assert leave(terminal) == 0


def test_kill_9_and_continue(start, tmp_path):
    script = {"answers": ["First.<|im_end|>", "Second.<|im_end|>", LIST], "token_seconds": 0.02}
    terminal = start(script)
    for question, answer in (("One?", "First."), ("Two?", "Second.")):
        terminal.send(f"{question}\r")
        terminal.wait(answer)
        terminal.wait(PROMPT)
    terminal.send("/set stats long\r")
    terminal.wait(r"stats +long +\(/set\)")  # not what was typed: what was answered
    terminal.wait(PROMPT)
    terminal.send("Three?\r", "item number 1")
    os.kill(terminal.child.pid, signal.SIGKILL)
    terminal.close()
    [events] = chats(tmp_path)
    assert turns(events) == [("One?", "First."), ("Two?", "Second.")]
    again = start({"answers": ["Again.<|im_end|>"]}, "--continue", story=False)
    assert "2 turns" in again.text() and "Two?" in again.text()
    again.send("Four?\r", "Again.")
    again.wait(r"context [\d,]+ of")  # long stats came back
    again.send("/undo 2\r", "from 'Two")
    assert leave(again) == 0
    [events] = chats(tmp_path)
    assert [e["event"] for e in events][-1] == "undo"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("when", ["answering", "waiting"])
def test_signals_save_and_end(start, tmp_path, number, code, when):
    answer, pace = (LIST, 0.02) if when == "answering" else (SHORT, 0)
    terminal = start({"answers": [answer], "token_seconds": pace})
    terminal.send("List them.\r")
    if when == "answering":
        terminal.wait("item number 3")
    else:
        terminal.wait(DONE)
        terminal.wait(TOOLBAR)
    os.kill(terminal.child.pid, number)
    assert terminal.close() == code
    [events] = chats(tmp_path)
    [(question, answer)] = turns(events)
    assert question == "List them." and "item number 3" in answer


def test_out_of_memory_halves_the_chunk_and_the_chat_goes_on(start, tmp_path):
    terminal = start({"answers": YES, "out_of_memory": [2]}, "--prefill-chunk", "256")
    assert "--prefill-chunk 128" in terminal.text()
    terminal.send("Fine?\r", "Yes.")
    assert leave(terminal) == 0


def test_out_of_memory_twice_is_an_error_and_the_chat_goes_on(start, tmp_path):
    # the first reading is 4 chunks in 2 layers; the second one fails at its second, also halved
    terminal = start({"answers": YES, "out_of_memory": [10, 11]}, "--prefill-chunk", "256")
    text = terminal.send("/budget 50%\r", "try: /budget 10%")
    assert "--prefill-chunk 128" in text
    terminal.send("Fine?\r", "Yes.")
    terminal.send("/budget\r", "budget 100% ")


def test_plain_mode_draws_nothing_twice(start, tmp_path):
    script = {"answers": ["**Yes**\x1b[2J.<|im_end|>"]}
    terminal = start(script, "--plain", until="Ask about story.txt")
    text = terminal.send("Fine?\r", DONE)
    assert "**Yes**·[2J." in text and "▌" not in text and "ctx" not in re.split(DONE, text)[1]
