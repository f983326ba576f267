"""Saved chats as files: events, torn lines, damage, names, locks."""

import json
import os
import stat

import pytest

from kvchat.chat import chatlog as saved
from kvchat.chat.chatlog_writer import ChatLogWriter
from kvchat.errors import KvchatError
from tests.support.errors import refused
from tests.support.scene import string_screen


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def turn(question, **more):
    tokens = {"finish_reason": "stop", "ids": [5], "asked": 1, "pending": []}
    return {"event": "turn", "question": question, "answer": "a", **tokens, **more}


def write(*events, name=""):
    record = saved.Record(saved.new_path())
    record.append(saved.first_event(name=name, model="demo"), *events)
    record.close()
    return record.path


def test_events_add_up():
    path = write(
        turn("one"),
        turn("two"),
        {"event": "undo", "count": 1},
        turn("three"),
        turn("three again", replaces=1),
        {"event": "method", "name": "snapkv"},
        {"event": "name", "name": "mine"},
        {"event": "of a later version"},
    )
    chat = saved.read(path)
    assert [t["question"] for t in chat.turns] == ["one", "three again"]
    assert (chat.name, chat.method["name"]) == ("mine", "snapkv")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(path.parent).st_mode) == 0o700


@pytest.mark.parametrize("size", [2, 10, 40])
def test_a_torn_line_is_left_out_and_cut_off(size):
    path = write(turn("one"), turn("two"))
    path.write_bytes(path.read_bytes()[:-size])
    chat = saved.read(path)
    assert [t["question"] for t in chat.turns] == ["one"]
    record = saved.Record(path)
    record.cut(chat.whole)
    record.append(turn("three"))
    record.close()
    assert [t["question"] for t in saved.read(path).turns] == ["one", "three"]


def test_damage_is_named_with_its_line_and_hides_no_other_chat():
    good, bad = write(turn("one")), write(turn("two"))
    lines = bad.read_text().splitlines()
    bad.write_text("\n".join([lines[0], "{nonsense", lines[1], ""]))
    with pytest.raises(KvchatError, match="line 2") as caught:
        saved.read(bad)
    assert caught.value.exit_code == 8
    assert [chat.path for chat in saved.chats()] == [good]


def test_a_last_line_without_its_end_is_a_line():
    path = write(turn("one"), turn("two"))
    path.write_bytes(path.read_bytes()[:-1])
    chat = saved.read(path)
    assert [t["question"] for t in chat.turns] == ["one", "two"]
    record = saved.Record(path)
    record.cut(chat.whole)
    record.append(turn("three"))
    record.close()
    assert [t["question"] for t in saved.read(path).turns] == ["one", "two", "three"]


LATER = (
    '{"event": "turn", "question": "", "answer": "", "finish_reason": "stop", "ids": [], '
    '"asked": 0, "pending": [], %s}'
)
WRONG = [
    '{"event": "turn"}',
    '{"event": "turn", "question": 3, "answer": "", "finish_reason": "stop", "ids": [], '
    '"asked": 0, "pending": []}',
    '{"event": "document", "files": 5}',
    '{"event": "document", "files": [], "day": "yesterday"}',
    '{"event": "document", "files": [], "day": 20261120}',
    LATER % '"reasoning": null',
    LATER % '"reasoning": "", "thought": "3"',
    LATER % '"reasoning": "", "thought": true',
    LATER % '"reasoning": "", "thinks": "off"',
    '{"event": "name", "name": -1}',
    '{"event": "undo", "count": "two"}',
    '{"event": "undo", "count": true}',
    "[1]",
    "5",
    "[" * 100_000,
]


@pytest.mark.parametrize("line", WRONG)
def test_one_bad_chat_stops_no_other_and_is_never_passed_over(line):
    """It is listed as damaged, and neither --continue nor its name goes to another chat."""
    good, bad = write(turn("one"), name="good"), write(turn("two"), name="bad")
    bad.write_text(bad.read_text() + line + "\n")
    os.utime(good, (1, 1))
    assert [chat.path for chat in saved.chats()] == [good]
    [damaged] = [chat for chat in saved.listing() if isinstance(chat, saved.Damaged)]
    assert damaged.path == bad and bad.stem in saved.summary(damaged)
    assert saved.find("good").path == good and saved.named("good").path == good
    for find in (lambda: saved.find(None), lambda: saved.find("bad"), lambda: saved.named("bad")):
        with refused("session", str(bad)):
            find()
    assert saved.named("another") is None


def test_a_pipe_among_the_chats_hangs_nothing():
    good = write(turn("one"))
    os.mkfifo(good.with_name("20990101-000000-aaaa.jsonl"))
    assert [chat.path for chat in saved.chats()] == [good]


def test_turns_of_another_process_are_not_lost():
    """The file is read again once it is locked: what was written in between stays."""
    path = write(turn("one"))
    known = saved.read(path)
    other = saved.Record(path)
    other.append(turn("two"))
    other.close()
    screen = string_screen()
    writer, now = ChatLogWriter.of(screen, known)
    writer.close()
    assert [t["question"] for t in now.turns] == ["one", "two"] and screen.warnings
    assert [t["question"] for t in saved.read(path).turns] == ["one", "two"]


def test_finding():
    with refused("session"):
        saved.find(None)
    first, second = write(name="night watch"), write(turn("x"), name="day")
    os.utime(first, (1, 1))
    assert saved.find(None).path == second
    assert saved.find("night watch").path == first
    assert saved.find(second.stem).path == second
    with pytest.raises(KvchatError, match="night") as caught:
        saved.find("night wach")
    assert "--resume 'night watch'" in caught.value.tries
    with pytest.raises(KvchatError, match="2 saved chats begin with"):
        saved.find("20")


def test_one_process_at_a_time():
    path = write()
    record = saved.Record(path)
    with refused("session"):
        saved.Record(path)
    with refused("session"):
        saved.remove(path.stem)
    record.close()
    saved.remove(path.stem)
    assert not path.exists()


@pytest.mark.parametrize("name", ["../x", "", "-x", "a/b", "x" * 81, "a\x1b[2J"])
def test_names_that_are_none(name):
    with refused("usage"):
        saved.checked_name(name)


def test_any_text_survives():
    text = "line\nbreak \x1b[2J ☃ \ud800".encode("utf-8", "replace").decode()
    path = write(turn(text))
    assert saved.read(path).turns[0]["question"] == text
    assert all(json.loads(line) for line in path.read_text().splitlines())
