"""A saved reading is the reading: the same entries and logits, or a refusal that says why."""

import json
import random
import shutil

import pytest
import torch
from safetensors.torch import save_file

from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.events import drain
from kvchat.engine.methods.spec import parse_method
from kvchat.engine.store import FORMAT, Refused
from kvchat.engine.store.book import KIND, layers_of, load_book, save_book
from kvchat.engine.store.header import describe
from kvchat.engine.store.identity import Identity, fingerprint
from kvchat.engine.store.tensors import Mapped, write
from tests.engine.scenes import assert_same_cache
from tests.engine.tiny import load_engine, random_ids, read
from tests.support.closeness import assert_close

IDS = random_ids(150)
KEY = "f" * 32


def saved(engine, path, method="adakv:budget=40%,window=8", ids=IDS, key=KEY):
    cache, _ = read(engine, ids, parse_method(method))
    save_book(path, engine, layers_of(cache, len(ids)), ids, key, {"title": "a book"})
    return cache


def rewritten(path, **changes):
    """The file again with right checksums, but other metadata or tensors."""
    mapped = Mapped(path)
    metadata = {k: changes.pop(k, v) for k, v in mapped.header.metadata.items()}
    write(path, {n: changes.pop(n, t.clone()) for n, t in mapped.tensors.items()}, metadata)
    assert not changes


@pytest.mark.parametrize(
    "method",
    [
        "full",
        "adakv:budget=30%,window=8",
        "kvmerger:budget=50%",
        "kvzip",
        "snapkv:bits=4",
        "pqcache:budget=30%,dense_below=0,code_bits=4,sinks=3",
    ],
)
def test_what_was_saved_comes_back(engine, tmp_path, method):
    path = tmp_path / "kv" / "book.safetensors"
    cache = saved(engine, path, method)
    again = load_book(path, engine, IDS, KEY)
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
        layer.append(k, v)
        kept = torch.ones(2, 100, dtype=torch.bool)
        layer.freeze(FlatSegment.keep(k[:, :100], v[:, :100], kept, 0))
    path = tmp_path / "book.safetensors"
    save_book(path, engine, layers_of(cache, len(IDS)), IDS, KEY, {})
    again = load_book(path, engine, IDS, KEY)
    assert again.frozen == 100 and again.position == len(IDS)
    got, want = (engine.score(each, [5, 6, 7]) for each in (again, cache))
    assert_close("logits", got, want)


def test_turns_change_nothing_of_what_is_being_saved(engine, tmp_path):
    cache, _ = read(engine, IDS, parse_method("adakv:budget=40%,window=8"))
    layers = layers_of(cache, len(IDS))
    drain(engine.extend(cache, random_ids(300, seed=2)))
    path = tmp_path / "book.safetensors"
    save_book(path, engine, layers, IDS, KEY, {})
    fresh, _ = read(engine, IDS, parse_method("adakv:budget=40%,window=8"))
    got, want = (engine.score(each, [5, 6]) for each in (load_book(path, engine, IDS, KEY), fresh))
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
            load_book(copy, engine, IDS, KEY)
    copy.write_bytes(data)
    load_book(copy, engine, IDS, KEY)


@pytest.mark.parametrize("left", [0, 5, 8, 100, 0.5, 0.999, -1])
def test_a_truncated_file_is_refused(engine, copy, left):
    data = copy.read_bytes()
    end = int(left * len(data)) if isinstance(left, float) else left
    copy.write_bytes(data[:end])
    with pytest.raises(Refused):
        load_book(copy, engine, IDS, KEY)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format": str(FORMAT - 1)}, f"{FORMAT - 1}.*{FORMAT}"),
        ({"kind": "a picture"}, KIND),
        ({"fingerprint": "e" * 32}, ""),
        ({"ids": torch.tensor(IDS[::-1], dtype=torch.int32)}, ""),
        ({"segments": "[]"}, "0 layers.* 2"),
        ({"segments": "nonsense"}, ""),
        ({"segments": json.dumps([[{"kind": "flat"}]] * 2)}, ""),
        ({"about": "[1]"}, ""),
        ({"segments": json.dumps([[{"kind": "odd", "span": [0, 150]}]] * 2)}, "odd"),
        ({"segments": json.dumps([[{"kind": "flat", "span": [0, 149]}]] * 2)}, "150"),
    ],
)
def test_another_file_is_refused(engine, copy, changes, named):
    rewritten(copy, **changes)
    with pytest.raises(Refused, match=named or None):
        load_book(copy, engine, IDS, KEY)


@pytest.mark.parametrize("metadata", [{"kind": KIND}, describe(KIND, KEY, {})])
def test_safetensors_of_somebody_else_are_refused(engine, copy, metadata):
    save_file({"k": torch.ones(3)}, copy, metadata)
    with pytest.raises(Refused):
        load_book(copy, engine, IDS, KEY)


def test_other_entries_and_other_weights_give_other_logits(engine, copy, checkpoint):
    with pytest.raises(Refused, match="%"):
        load_book(copy, load_engine(checkpoint(seed=1)), IDS, KEY)
    values = Mapped(copy).tensors["0.0.v"]
    rewritten(copy, **{"0.0.v": values.flip(0).contiguous()})
    with pytest.raises(Refused, match="%"):
        load_book(copy, engine, IDS, KEY)


def test_the_fingerprint_knows_what_a_document_depends_on(checkpoint, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint(), folder)
    engine, method = load_engine(folder), parse_method("adakv")

    def name(engine=engine, ids=IDS, method=method, probes=()):
        return fingerprint(Identity(engine, folder).parts(ids, method, probes))

    names = [
        name(),
        name(ids=[*IDS[:-1], IDS[-1] ^ 1]),
        name(method=parse_method("adakv:budget=24%")),
        name(method=parse_method("adakv:bits=8")),
        name(method=parse_method("ada-pyramid")),
        name(method=None),
        name(probes=[[1, 2]]),
        name(engine=load_engine(folder, dtype="bf16")),
    ]
    assert name() == names[0]
    config = folder / "config.json"
    config.write_text(config.read_text().replace("10000.0", "20000.0"))
    names.append(name())
    (folder / "tokenizer_config.json").write_text("{}")
    names.append(name())
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    names.append(name())
    assert len(set(names)) == len(names)
