"""Saved chats as files: events, torn lines, damage, names, locks."""

import json
import os
import stat

import pytest

from kvchat.chat import chatlog as saved
from kvchat.errors import KvchatError
from tests.support.errors import refused


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def turn(question, **more):
    return {"event": "turn", "question": question, "answer": "a", **more}


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


@pytest.mark.parametrize("size", [1, 10, 40])
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
    assert [chat.path for chat in saved.listing()] == [good]


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
