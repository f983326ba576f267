"""Processes that are killed while they write a chat: what was acknowledged is there."""

import os
import random
import signal
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

from kvchat.chat import chatlog
from kvchat.engine.store.atomic import MARK, TEMPORARY
from kvchat.errors import KvchatError

TURN = {"event": "turn", "question": "q" * 3000, "answer": "a", "finish_reason": "stop",
        "ids": [5], "asked": 1, "pending": []}  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def writes(path: Path, acknowledged: int) -> None:
    """In a child: go on with a chat, a byte for every turn that is on disk, until it is killed."""
    record = chatlog.Record(path)
    if path.stat().st_size:
        record.cut(chatlog.read(path).whole)
    else:
        record.append(chatlog.first_event(name="mine"))
    while True:
        record.append(TURN)
        os.write(acknowledged, b".")


def test_thirty_kills_cost_no_acknowledged_turn():
    chance, path, said = random.Random(0), chatlog.new_path(), 0
    for _ in range(30):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                writes(path, write)
            finally:
                os._exit(1)
        os.close(write)
        for _ in range(chance.randrange(1, 8)):
            said += len(os.read(read, 1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(read, 4096):
            said += len(more)
        os.close(read)
        there = len(chatlog.read(path).turns)
        assert said <= there <= said + 1, "one may be on disk that was not acknowledged yet"
        said = there
    assert said >= 30


@pytest.fixture
def kill(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    yield import_module("kill")
    del sys.modules["kill"]


def test_the_benchmark_notices_what_it_looks_for(kill, home):
    counts: Counter[str] = Counter()
    record = chatlog.Record(chatlog.new_path())
    record.append(chatlog.first_event(name="mine"), TURN)
    record.close()
    kill.look("mine", 3, counts)
    assert counts["lost"] == 2
    record.path.write_bytes(record.path.read_bytes() + b"nonsense\n")
    with pytest.raises(KvchatError):
        kill.turns_of("mine")
    kill.look("mine", 1, counts)
    cache = home / "kv"
    cache.mkdir()
    for name in ("x.safetensors", f"{MARK}x{TEMPORARY}", "other.bin"):
        (cache / name).write_bytes(b"half")
        kill.whole(cache / name, counts)
    assert counts["unreadable"] == counts["damaged"] == counts["left_over"] == 1
    assert counts["foreign"] == 1 and not counts["cached"]
