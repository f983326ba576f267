"""A saved prefill is the prefill: the same entries and logits, or a refusal that says why. When
disk or process fail, the file is the old one or the new one, never less."""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method
from kvchat.engine.store import FORMAT, Refused, atomic
from kvchat.engine.store.cached_document import KIND, layers_of, load, save
from kvchat.engine.store.header import describe
from kvchat.engine.store.identity import Identity, fingerprint
from kvchat.engine.store.tensors import Mapped, Stopped, write
from tests.engine.gguf.writing import write as write_gguf
from tests.engine.scenes import assert_same_cache
from tests.engine.test_families import eager
from tests.engine.tiny import load_engine, random_gate, random_ids, read, save_model
from tests.support.closeness import assert_close

IDS = random_ids(150)
KEY = "f" * 32


def saved(engine, path, method="adakv:budget=40%,window=8", ids=IDS, key=KEY):
    cache, _ = read(engine, ids, parse_method(method))
    save(path, engine, layers_of(cache, len(ids)), ids, key, {"title": "a book"})
    return cache


def rewritten(path, **changes):
    """The file again with right checksums, but other metadata or tensors."""
    mapped = Mapped(path)
    metadata = {k: changes.pop(k, v) for k, v in mapped.header.metadata.items()}
    write(path, {n: changes.pop(n, t.clone()) for n, t in mapped.tensors.items()}, metadata)
    assert not changes


METHODS = ["full", "adakv:budget=30%,window=8", "kvmerger:budget=50%", "kvzip", "snapkv:bits=4",
           "pqcache:budget=30%,dense_below=0,code_bits=4,sinks=3",
           "squeezed:budget=30%,dense_below=0,levels=2",
           "kcache:budget=30%,dense_below=0", "qaq:budget=30%", "elastic",
           "less:budget=60%", "less:budget=60%,bits=8"]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_what_was_saved_comes_back(engine, tmp_path, method):
    path = tmp_path / "kv" / "book.safetensors"
    cache = saved(engine, path, method)
    again = load(path, engine, IDS, KEY)
    assert again.memory() == cache.memory() and again.position == len(IDS)
    assert_same_cache(again, cache)
    for ids in ([5, 6, 7], [8]):
        logits = [drain(engine.extend(each, ids)) for each in (cache, again)]
        assert torch.equal(*logits)
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700


def test_rows_of_a_live_end_come_back_too(engine, tmp_path):
    cache, _ = read(engine, IDS)
    for layer in cache.layers:  # as of a method that leaves the newest entries in the tail
        (whole,) = layer.segments
        k, v = whole.k.view(2, -1, 16), whole.v.view(2, -1, 16)
        layer.thaw(0)
        layer.tail.append(k, v)
        kept = torch.ones(2, 100, dtype=torch.bool)
        layer.freeze(FlatSegment.keep(k[:, :100], v[:, :100], kept, 0))
    path = tmp_path / "book.safetensors"
    save(path, engine, layers_of(cache, len(IDS)), IDS, KEY, {})
    again = load(path, engine, IDS, KEY)
    assert again.frozen == 100 and again.position == len(IDS)
    got, want = (engine.score(each, [5, 6, 7]) for each in (again, cache))
    assert_close("logits", got, want)


def test_turns_change_nothing_of_what_is_being_saved(engine, tmp_path):
    cache, _ = read(engine, IDS, parse_method("adakv:budget=40%,window=8"))
    layers = layers_of(cache, len(IDS))
    drain(engine.extend(cache, random_ids(300, seed=2)))
    path = tmp_path / "book.safetensors"
    save(path, engine, layers, IDS, KEY, {})
    fresh, _ = read(engine, IDS, parse_method("adakv:budget=40%,window=8"))
    got, want = (engine.score(each, [5, 6]) for each in (load(path, engine, IDS, KEY), fresh))
    assert torch.equal(got, want)


@pytest.fixture(scope="module")
def book(engine, tmp_path_factory):
    path = tmp_path_factory.mktemp("book") / "book.safetensors"
    saved(engine, path)
    return path


@pytest.fixture
def copy(book, tmp_path):
    path = tmp_path / "book.safetensors"
    path.write_bytes(book.read_bytes())
    return path


def test_every_damaged_byte_is_noticed(engine, copy):
    data = copy.read_bytes()
    dice = random.Random(0)
    places = {*range(0, 200, 7), *(dice.randrange(len(data)) for _ in range(150)), len(data) - 1}
    for place in places:
        bad = bytearray(data)
        bad[place] ^= 1 << dice.randrange(8)
        copy.write_bytes(bad)
        with pytest.raises(Refused):
            load(copy, engine, IDS, KEY)
    copy.write_bytes(data)
    load(copy, engine, IDS, KEY)


def test_a_truncated_or_foreign_file_is_refused(engine, copy):
    data = copy.read_bytes()
    ends = (0, 5, 8, 100, len(data) // 2, int(0.999 * len(data)), -1)
    for other in (*(data[:end] for end in ends), b"junk", b"\0" * 100, b"\xff" * 100, b"{}" * 50):
        copy.write_bytes(other)
        with pytest.raises(Refused):
            load(copy, engine, IDS, KEY)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format": str(FORMAT - 1)}, f"{FORMAT - 1}.*{FORMAT}"),
        ({"kind": "a picture"}, KIND),
        ({"fingerprint": "e" * 32}, ""),
        ({"ids": torch.tensor(IDS[::-1], dtype=torch.int32)}, ""),
        ({"segments": "[]"}, "0 .* 2"),
        ({"segments": "nonsense"}, ""),
        ({"segments": json.dumps([[{"kind": "flat"}]] * 2)}, ""),
        ({"about": "[1]"}, ""),
        ({"segments": json.dumps([[{"kind": "odd", "span": [0, 150]}]] * 2)}, "odd"),
        ({"segments": json.dumps([[{"kind": "flat", "span": [0, 149]}]] * 2)}, "148"),
    ],
)
def test_another_file_is_refused(engine, copy, changes, named):
    rewritten(copy, **changes)
    with pytest.raises(Refused, match=named or None):
        load(copy, engine, IDS, KEY)


@pytest.mark.parametrize("metadata", [{"kind": KIND}, describe(KIND, KEY, {})])
def test_safetensors_of_somebody_else_are_refused(engine, copy, metadata):
    save_file({"k": torch.ones(3)}, copy, metadata)
    with pytest.raises(Refused):
        load(copy, engine, IDS, KEY)


def test_other_entries_and_other_weights_give_other_logits(engine, copy, checkpoint):
    with pytest.raises(Refused, match="%"):
        load(copy, load_engine(checkpoint(seed=1)), IDS, KEY)
    values = Mapped(copy).tensors["0.0.v"]
    rewritten(copy, **{"0.0.v": values.flip(0).contiguous()})
    with pytest.raises(Refused, match="%"):
        load(copy, engine, IDS, KEY)


def test_the_fingerprint_knows_what_a_document_depends_on(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint(), tmp_path / "model")
    engine, method = load_engine(folder), parse_method("adakv")

    def name(engine=engine, ids=IDS, method=method, probes=()):
        return fingerprint(Identity(engine, folder).parts(ids, method, probes))

    names = [
        name(),
        name(ids=[*IDS[:-1], IDS[-1] ^ 1]),
        *(name(method=parse_method(m)) for m in ("adakv:budget=24%", "adakv:bits=8", "snapkv")),
        name(method=None),
        name(probes=[[1, 2]]),
        name(engine=load_engine(folder, dtype="bf16")),
    ]
    calibrated = load_engine(folder)
    for what, fitted in (("gate", random_gate(engine, seed=9)), ("features", None)):
        vars(calibrated)[what] = fitted
        names.append(name(engine=calibrated))
    assert name() == names[0] == name(engine=load_engine(folder))
    config, weights = folder / "config.json", folder / "model.safetensors"
    data = weights.read_bytes()
    for path, changed in (
        (config, config.read_bytes().replace(b"10000.0", b"20000.0")),
        (folder / "tokenizer_config.json", b"{}"),
        (weights, data[:-1] + bytes([data[-1] ^ 1])),
    ):
        path.write_bytes(changed)
        names.append(name(engine=load_engine(folder)))
    assert len(set(names)) == len(names)


def test_a_model_by_another_name_or_place_is_the_same(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", eager(save_model(tmp_path / "model")))
    link = tmp_path / "store" / "sha256-12.gguf"
    link.parent.mkdir()
    link.symlink_to(path)
    same = [fingerprint(Identity(load_engine(file), file).parts(IDS)) for file in (path, link)]
    assert same[0] == same[1]
    os.utime(path, ns=(1, 1))
    assert fingerprint(Identity(load_engine(path), path).parts(IDS)) != same[0]


ABOUT = describe("numbers", "f", {})


def contents(number):
    return {f"t{i}": torch.full((50, 3), float(number + i)) for i in range(4)}


def number_in(path):
    """The number that the file was written with; it must be whole."""
    mapped = Mapped(path)
    mapped.check()
    number = int(mapped.tensors["t0"][0, 0])
    assert all(torch.equal(mapped.tensors[n], t) for n, t in contents(number).items())
    return number


def failing(monkeypatch, at=-1) -> list[str]:
    """Notes the calls that touch the disk, by name, and lets one of them fail."""
    names = []

    def wrapped(name, real):
        def call(*arguments):
            names.append(name)
            if len(names) - 1 == at:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        return call

    for name in ("write", "fsync", "replace"):
        monkeypatch.setattr(atomic.os, name, wrapped(name, getattr(os, name)))
    return names


def test_a_fault_at_any_call_leaves_the_old_or_the_new_file(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "STEP", 256)  # several writes for each tensor
    path = tmp_path / "kv" / "a.safetensors"
    write(path, contents(1), ABOUT)
    with monkeypatch.context() as patch:
        calls = failing(patch)
        write(path, contents(1), ABOUT)
    assert len(calls) > 12 and calls[-3:] == ["fsync", "replace", "fsync"]
    for at in range(len(calls)):
        with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
            failing(patch, at)
            write(path, contents(2), ABOUT)
        assert caught.value.errno == 28
        # the last call is made when the new file has its name
        assert number_in(path) == (2 if at == len(calls) - 1 else 1)
        assert os.listdir(path.parent) == ["a.safetensors"], f"left over after call {at}"
    with monkeypatch.context() as patch, pytest.raises(OSError):
        failing(patch, 3)
        write(tmp_path / "kv" / "b.safetensors", contents(3), ABOUT)
    assert os.listdir(path.parent) == ["a.safetensors"]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.engine.test_store import ABOUT, contents
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
