"""The chat in a real terminal with scripted answers: stopping, resizing, pasting, dying, coming
back. Every wait is for a text."""

import json
import os
import re
import shutil
import signal

import pytest

from tests.support.terminal import Terminal

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

    def run(script, *arguments, **options):
        given = ["-m", folder, *(arguments or ("-f", str(tmp_path / "story.txt")))]
        terminal = Terminal(given, tmp_path, script=script, **options)
        running.append(terminal)
        return terminal

    yield run
    for terminal in running:
        terminal.child.close(force=True)


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


PROMPT = r"(?m)^> *$"
TOOLBAR = r"\n[^\n]*ctx [^\n]*KV[^\n]*\s*\Z"


def test_a_long_answer_is_drawn_once_and_in_order(start):
    terminal = start({"answers": [LIST], "token_seconds": 0.002})
    terminal.wait(PROMPT)
    terminal.send("List them.\r")
    text = terminal.wait("end of turn")
    found = [int(n) for n in re.findall(r"item number (\d+)", text)]
    assert found == list(range(1, 41)), "nothing twice, nothing missing, nothing left behind"
    assert "Ctrl-C stops ▌" not in text and "tok · " not in text.split("List them.")[1][:-400]


def test_what_is_typed_ahead_waits_for_the_next_line(start):
    terminal = start({"answers": [SHORT, "Fine.<|im_end|>"], "token_seconds": 0.01})
    terminal.wait(PROMPT)
    terminal.send("List them.\r")
    terminal.wait("item number 2")
    terminal.send("Really?")
    text = terminal.wait(r"end of turn\s+> Really\?")
    assert text.count("Really?") == 1, "it is drawn where it belongs, and nowhere else"
    found = [int(n) for n in re.findall(r"item number (\d+)", text)]
    assert found == list(range(1, 13))
    terminal.send("\r")
    terminal.wait("Fine.")


def test_keys_that_edit_a_line_wait_for_it_too(start):
    """Ctrl-D and Backspace are keys of the next line, not of the terminal's own line editing."""
    terminal = start({"answers": [SHORT, "Fine.<|im_end|>"], "token_seconds": 0.01})
    terminal.wait(PROMPT)
    terminal.send("List them.\r")
    terminal.wait("item number 2")
    terminal.send("Realz\x7fly?\r\x04")
    assert terminal.close() == 0
    assert "> Really?" in terminal.text() and "Fine." in terminal.text()


def test_ctrl_c_while_answering_keeps_what_came(start, tmp_path):
    terminal = start({"answers": [LIST, "Fine.<|im_end|>"], "token_seconds": 0.02})
    terminal.wait(PROMPT)
    terminal.send("List them.\r")
    terminal.wait("item number 2")
    terminal.send("\x03")
    terminal.wait("stopped by you")
    terminal.wait(r"ctx ~")
    terminal.send("And now?\r")
    terminal.wait("Fine.")
    terminal.wait("end of turn")
    assert leave(terminal) == 0
    [events] = chats(tmp_path)
    (first, partial), second = turns(events)
    assert first == "List them." and "item number 2" in partial and "number 40" not in partial
    assert second == ("And now?", "Fine.")


def reading(start, tmp_path):
    terminal = start(
        {"chunk_seconds": 0.05, "answers": ["Yes.<|im_end|>"]},
        "-f",
        str(tmp_path / "story.txt"),
        "--prefill-chunk",
        "32",
    )
    terminal.wait(r"reading .*layer 1/2")
    terminal.send("\x03")
    terminal.wait(r"stop reading\? \[c\]ontinue / \[d\]rop")
    return terminal


def test_a_reading_goes_on_after_ctrl_c(start, tmp_path):
    terminal = reading(start, tmp_path)
    terminal.send("c")
    terminal.wait("read .* tokens in")
    terminal.wait(PROMPT)
    terminal.send("/files\r")
    terminal.wait("from 0 on")


def test_a_reading_that_is_dropped_leaves_a_chat_without_document(start, tmp_path):
    terminal = reading(start, tmp_path)
    terminal.send("d")
    terminal.wait("document dropped")
    terminal.wait(PROMPT)
    terminal.send("Are you there?\r")
    terminal.wait("Yes.")
    terminal.send("/file " + str(tmp_path / "story.txt") + "\r")
    terminal.wait("read .* tokens in")
    terminal.send("/reset\r")
    terminal.wait("document and conversation forgotten")


def test_a_reread_that_is_dropped_keeps_the_old_cache(start, tmp_path):
    terminal = start(
        {"chunk_seconds": 0.02, "answers": ["Yes.<|im_end|>"]},
        "-f",
        str(tmp_path / "story.txt"),
        "--prefill-chunk",
        "64",
        "-y",
    )
    terminal.wait(PROMPT)
    terminal.send("/budget 50%\r")
    terminal.wait("reading .*layer 1/2")
    terminal.send("\x03")
    terminal.wait("stop reading")
    terminal.send("d")
    terminal.wait("nothing has changed")
    terminal.send("/budget\r")
    terminal.wait(r"budget 25% ")


def test_twice_ctrl_c_while_answering_breaks_off(start):
    terminal = start({"answers": ["x" * 500], "token_seconds": 0.3})
    terminal.wait(PROMPT)
    terminal.send("Go.\r")
    terminal.wait("▌ 1 tok|▌ 2 tok")
    terminal.send("\x03\x03")
    terminal.wait("stopped")
    assert leave(terminal) == 0


def test_resize_while_answering_and_at_the_prompt(start):
    terminal = start({"answers": [SHORT], "token_seconds": 0.01})
    terminal.wait(PROMPT)
    terminal.send("List them.\r")
    terminal.wait("item number 5")
    terminal.resize(50, 20)
    terminal.wait("end of turn")
    terminal.wait(r"ctx \d+% +KV")
    terminal.resize(130, 24)
    terminal.wait(r"ctx .*▓|ctx .*░")
    assert leave(terminal) == 0


def test_a_megabyte_is_pasted_as_one_message(start, tmp_path):
    terminal = start({"answers": ["Read.<|im_end|>"]})
    terminal.wait(PROMPT)
    terminal.paste("line of a long paste\n" * 50_000)
    terminal.wait(r"\[pasted 50,000 lines, 1,050,000 characters\]", 90)
    terminal.send("\r")
    terminal.wait(r"\[a\]ttach it as a document")
    terminal.send("s")
    terminal.wait("needs .* tokens", 90)  # it does not fit; it was one question, none was run
    terminal.wait(PROMPT)
    terminal.send("/ctx\r")
    terminal.wait("0 turns")


def test_suspend_and_go_on(start, tmp_path):
    """Under what a shell does with a job: without it the kernel would not stop anything."""
    script = {"answers": [SHORT, "Yes.<|im_end|>"], "token_seconds": 0.01}
    terminal = start(script, is_job=True)
    terminal.wait(PROMPT)
    terminal.send("\x1a")
    terminal.wait("job 1 stopped")
    terminal.send("\r")
    terminal.wait(r"stopped\s+> *\n")
    terminal.send("List them.\r")
    terminal.wait("item number 2")
    terminal.send("\x1a")
    terminal.wait("job 2 stopped")
    terminal.send("\r")
    text = terminal.wait("end of turn")
    terminal.wait(PROMPT)
    assert [int(n) for n in re.findall(r"item number (\d+)", text)] == list(range(1, 13))
    terminal.send("Still there?\r")
    terminal.wait("Yes.")
    assert leave(terminal) == 0


def test_kill_9_and_continue(start, tmp_path):
    script = {"answers": ["First.<|im_end|>", "Second.<|im_end|>", LIST], "token_seconds": 0.02}
    terminal = start(script)
    terminal.wait(PROMPT)
    for question, answer in (("One?", "First."), ("Two?", "Second.")):
        terminal.send(f"{question}\r")
        terminal.wait(answer)
        terminal.wait(PROMPT)
    terminal.send("/set stats long\r")
    terminal.wait(r"stats +long +/set")  # not what was typed: what was answered
    terminal.wait(PROMPT)
    terminal.send("Three?\r")
    terminal.wait("item number 1")
    os.kill(terminal.child.pid, signal.SIGKILL)
    terminal.close()
    [events] = chats(tmp_path)
    assert turns(events) == [("One?", "First."), ("Two?", "Second.")]
    again = start({"answers": ["Again.<|im_end|>"]}, "--continue")
    again.wait("going on with .*: 2 turns")
    again.wait("last question: Two")
    again.wait(PROMPT)
    again.send("Four?\r")
    again.wait("Again.")
    again.wait(r"window \d+ of")  # long stats came back
    again.send("/undo 2\r")
    again.wait("from 'Two")
    assert leave(again) == 0
    [events] = chats(tmp_path)
    assert [e["event"] for e in events][-1] == "undo"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("when", ["answering", "waiting"])
def test_signals_save_and_end(start, tmp_path, number, code, when):
    answer, pace = (LIST, 0.02) if when == "answering" else (SHORT, 0)
    terminal = start({"answers": [answer], "token_seconds": pace})
    terminal.wait(PROMPT)
    terminal.send("List them.\r")
    if when == "answering":
        terminal.wait("item number 3")
    else:
        terminal.wait("end of turn")
        terminal.wait(TOOLBAR)
    os.kill(terminal.child.pid, number)
    assert terminal.close() == code
    [events] = chats(tmp_path)
    [(question, answer)] = turns(events)
    assert question == "List them." and "item number 3" in answer


def test_out_of_memory_halves_the_chunk_and_the_chat_goes_on(start, tmp_path):
    terminal = start(
        {"answers": ["Yes.<|im_end|>"], "out_of_memory": [2]},
        "-f",
        str(tmp_path / "story.txt"),
        "--prefill-chunk",
        "256",
    )
    terminal.wait(r"out of memory: going on with --prefill-chunk 128")
    terminal.wait(PROMPT)
    terminal.send("Fine?\r")
    terminal.wait("Yes.")
    assert leave(terminal) == 0


def test_out_of_memory_twice_is_an_error_and_the_chat_goes_on(start, tmp_path):
    # the first reading is 4 chunks in 2 layers; the second one fails at its second, also halved
    terminal = start(
        {"answers": ["Yes.<|im_end|>"], "out_of_memory": [10, 11]},
        "-f",
        str(tmp_path / "story.txt"),
        "--prefill-chunk",
        "256",
    )
    terminal.wait(PROMPT)
    terminal.send("/budget 50%\r")
    text = terminal.wait("the chat is as it was")
    assert "out of memory: going on with --prefill-chunk 128" in text
    terminal.send("Fine?\r")
    terminal.wait("Yes.")
    terminal.send("/budget\r")
    terminal.wait("budget 25% ")


def test_plain_mode_draws_nothing_twice(start, tmp_path):
    terminal = start(
        {"answers": ["**Yes**\x1b[2J.<|im_end|>"]}, "--plain", "-f", str(tmp_path / "story.txt")
    )
    terminal.wait("Ask about story.txt")
    terminal.send("Fine?\r")
    text = terminal.wait("end of turn")
    assert "**Yes**·[2J." in text and "▌" not in text and "ctx" not in text.split("end of turn")[1]
