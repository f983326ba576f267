"""Saving when the disk or the process fails: the file is the old one or the new one, never less."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from kvchat.engine.store import Refused, atomic
from kvchat.engine.store.header import describe
from kvchat.engine.store.tensors import Mapped, Stopped, write

ABOUT = describe("numbers", "f", {})
CALLS = ("write", "fsync", "replace")


def contents(number):
    return {f"t{i}": torch.full((50, 3), float(number + i)) for i in range(4)}


def number_in(path):
    """The number that the file was written with; it must be whole."""
    mapped = Mapped(path)
    mapped.check()
    number = int(mapped.tensors["t0"][0, 0])
    assert all(torch.equal(mapped.tensors[n], t) for n, t in contents(number).items())
    return number


class Faults:
    """Counts the calls that touch the disk and lets one of them fail."""

    def __init__(self, monkeypatch, at=-1, action=None):
        self.count, self.names = 0, []
        for name in CALLS:
            monkeypatch.setattr(atomic.os, name, self.wrapped(name, getattr(os, name), at))

    def wrapped(self, name, real, at):
        def call(*arguments):
            self.count += 1
            self.names.append(name)
            if self.count - 1 == at:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        return call


def test_a_fault_at_any_call_leaves_the_old_or_the_new_file(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "STEP", 256)  # several writes for each tensor
    path = tmp_path / "kv" / "a.safetensors"
    write(path, contents(1), ABOUT)
    with monkeypatch.context() as patch:
        calls = Faults(patch)
        write(path, contents(1), ABOUT)
    assert calls.count > 12 and calls.names[-3:] == ["fsync", "replace", "fsync"]
    for at in range(calls.count):
        with monkeypatch.context() as patch:
            Faults(patch, at)
            with pytest.raises(OSError) as caught:
                write(path, contents(2), ABOUT)
        assert caught.value.errno == 28
        # the last call is made when the new file has its name
        assert number_in(path) == (2 if at == calls.count - 1 else 1)
        assert os.listdir(path.parent) == ["a.safetensors"], f"left over after call {at}"
    with monkeypatch.context() as patch:
        Faults(patch, 3)
        with pytest.raises(OSError):
            write(tmp_path / "kv" / "b.safetensors", contents(3), ABOUT)
    assert os.listdir(path.parent) == ["a.safetensors"]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.engine.test_store_faults import ABOUT, contents
from kvchat.engine.store import atomic
from kvchat.engine.store.tensors import write
name, at = sys.argv[2].split(":")
real, count = getattr(os, name), 0
def deadly(*arguments):
    global count
    count += 1
    if count > int(at):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
setattr(atomic.os, name, deadly)
write(Path(sys.argv[1]), contents(2), ABOUT)
"""


def test_a_killed_process_leaves_the_old_file_and_something_to_sweep(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write(path, contents(1), ABOUT)
    arguments = [str(path), "replace:0", str(Path(__file__).parents[2])]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], timeout=60)
    assert done.returncode == -9
    assert number_in(path) == 1 and len(os.listdir(tmp_path)) == 2
    atomic.sweep(tmp_path)
    assert len(os.listdir(tmp_path)) == 2, "it could be one that is being written"
    monkeypatch.setattr(atomic, "STALE", 0.0)
    atomic.sweep(tmp_path)
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_what_is_being_written_is_not_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "STALE", 0.0)
    path = tmp_path / "a.safetensors"
    with atomic.NewFile(path) as file:
        file.write(b"abc")
        atomic.sweep(tmp_path)
    assert path.read_bytes() == b"abc"


def test_a_save_that_is_given_up_leaves_nothing(tmp_path):
    answers = iter([False, False, True])
    with pytest.raises(Stopped):
        write(tmp_path / "a.safetensors", contents(1), ABOUT, lambda: next(answers))
    assert os.listdir(tmp_path) == []


def test_two_at_once_never_show_half_a_file(tmp_path):
    path, until = tmp_path / "a.safetensors", time.monotonic() + 1.0
    write(path, contents(1), ABOUT)

    def saving(number):
        while time.monotonic() < until:
            write(path, contents(number), ABOUT)

    threads = [threading.Thread(target=saving, args=(n,)) for n in (10, 20)]
    for thread in threads:
        thread.start()
    seen = set()
    while time.monotonic() < until:
        seen.add(number_in(path))
    for thread in threads:
        thread.join()
    assert {10, 20} <= seen <= {1, 10, 20} and os.listdir(tmp_path) == ["a.safetensors"]


def test_a_file_that_is_replaced_stays_whole_for_who_has_it_mapped(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, contents(1), ABOUT)
    mapped = Mapped(path)
    write(path, contents(2), ABOUT)
    path.unlink()
    mapped.check()
    assert torch.equal(mapped.tensors["t3"], contents(1)["t3"])


def test_an_empty_or_foreign_file_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    for data in (b"", b"junk", b"\0" * 100, b"\xff" * 100, b"{}" * 50):
        path.write_bytes(data)
        with pytest.raises(Refused):
            Mapped(path)
