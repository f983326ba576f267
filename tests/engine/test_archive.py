"""All entries of a document beside what is kept of them: choosing again equals reading again."""

import pytest
import torch

from kvchat.engine.budget import Budget
from kvchat.engine.cache.segment import Memory
from kvchat.engine.events import Delta, Smaller, drain
from kvchat.engine.methods import METHODS
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.needs import Needs
from kvchat.engine.prefill import prefill
from kvchat.engine.prefill.archive_writer import OBSERVED, InMemory
from kvchat.engine.prefill.prefill import Compression
from kvchat.engine.selection import can_choose
from kvchat.engine.session import Session
from kvchat.engine.store.archive import OnDisk, load_archives
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.errors import KvchatError
from tests.engine.scripted import LoggedEngine, ask
from tests.engine.tiny import load_engine, random_ids, read
from tests.support.closeness import assert_close

IDS, QUESTION = random_ids(180), random_ids(9, seed=3)
KEY = "a" * 32
CHOOSING = [name for name, entry in METHODS.items() if not entry.told]
ADAKV = parse_method("adakv:budget=40%,window=8")


def archived(engine, method=ADAKV, archiving=None):
    archiving = archiving or InMemory()
    with archiving:
        reading = drain(engine.prefill(IDS, [Compression(method)], archiving=archiving))
    return reading.caches[0]


def on_disk(engine, path):
    return OnDisk(path, engine.config.num_layers, IDS, KEY, {"title": "a book"})


def same_segments(got, want):
    for a, b in zip(got.segments(), want.segments(), strict=True):
        assert a.kind == b.kind and a.span == b.span and a.lengths == b.lengths
        assert all(torch.equal(a.tensors()[name], t) for name, t in b.tensors().items())


@pytest.fixture(scope="module")
def archive(engine):
    """A cache that every test of this file may choose anew, and none may extend for good."""
    return archived(engine, archiving=InMemory(OBSERVED | Needs(column_mass=True)))


@pytest.mark.parametrize("name", [*CHOOSING, "snapkv:bits=4", "adakv:window=60"])
def test_choosing_again_equals_reading_again(engine, archive, name):
    method = parse_method(name)
    assert can_choose(archive, method)
    engine.choose(archive, method)
    same_segments(archive, read(engine, IDS, method)[0])
    assert archive.archived().host >= len(IDS) * engine.kv_bytes_per_token


def test_what_is_dear_is_observed_for_a_method_that_needs_it_only(engine):
    archive = archived(engine)
    for name in ("h2o", "kvmerger", "kvzip", "askall", "adakv:window=100"):
        assert not can_choose(archive, parse_method(name))
    cache = archived(engine, parse_method("h2o:budget=50%"))
    engine.choose(cache, parse_method("h2o:budget=20%"))
    same_segments(cache, read(engine, IDS, parse_method("h2o:budget=20%"))[0])


@pytest.mark.parametrize("name", ["kvzip", "kvzip+", "askall"])
def test_what_was_told_while_reading_is_kept(engine, tmp_path, name):
    method, other = (parse_method(name, Budget.parse(each)) for each in ("50%", "20%"))
    caches = [archived(engine, method), archived(engine, method, on_disk(engine, tmp_path / "a"))]
    want = read(engine, IDS, other)[0]
    for cache in caches:
        engine.choose(cache, other)
        same_segments(cache, want)


@pytest.mark.parametrize("place", ["host", "disk"])
@pytest.mark.parametrize("chunk", [4, 2048])
def test_a_question_reads_everything_and_chooses_as_if_it_had_been_in_view(
    checkpoint, tmp_path, place, chunk
):
    engine = load_engine(checkpoint(), chunk=chunk)
    path = tmp_path / "a.safetensors"
    cache = archived(engine, ADAKV, on_disk(engine, path) if place == "disk" else None)
    full, _ = read(engine, IDS)
    logits, seconds = drain(engine.extend_choosing(cache, QUESTION, ADAKV))
    assert_close("logits", logits, drain(engine.extend(full, QUESTION)))
    assert seconds > 0 and cache.position == full.position
    seen = drain(engine.prefill(IDS, [Compression(ADAKV, (0,))], [QUESTION])).caches[0]
    for got, want in zip(cache.segments(), seen.segments(), strict=True):
        assert torch.equal(got.position, want.position) and torch.equal(got.cu, want.cu)
    assert all(layer.exact is None and layer.asking is None for layer in cache.layers)
    # the next one attends to everything and to the first one, exactly
    more = random_ids(5, seed=4)
    logits, _ = drain(engine.extend_choosing(cache, more, ADAKV))
    assert_close("logits", logits, drain(engine.extend(full, more)))


def test_a_question_that_is_stopped_changes_nothing(checkpoint):
    engine = load_engine(checkpoint(), chunk=4)
    cache = archived(engine)
    before = [list(layer.segments) for layer in cache.layers]
    for steps in (1, 3, 5):
        work = engine.extend_choosing(cache, QUESTION, ADAKV)
        for _ in range(steps):
            next(work)
        work.close()
        assert cache.position == len(IDS) and cache.layers[0].tail.length == 0
        assert [layer.segments for layer in cache.layers] == before
        assert all(layer.exact is None and layer.asking is None for layer in cache.layers)


def test_memory_that_runs_out_does_not_count_queries_twice(checkpoint, monkeypatch):
    engine = load_engine(checkpoint())
    want = archived(engine)
    drain(engine.extend_choosing(want, QUESTION, ADAKV))
    cache, step, calls = archived(engine), prefill.step, []

    def failing(block, layer, x, rotation):
        result = step(block, layer, x, rotation)
        calls.append(len(x))
        if len(calls) == 2:
            raise MemoryError
        return result

    monkeypatch.setattr(prefill, "step", failing)
    events = list(engine.extend_choosing(cache, QUESTION, ADAKV))
    assert any(isinstance(event, Smaller) for event in events)
    assert [s.lengths for s in cache.segments()] == [s.lengths for s in want.segments()]
    for got, wanted in zip(cache.segments(), want.segments(), strict=True):
        assert_close("entries", got.k, wanted.k)


def test_archives_on_disk_choose_alike_and_are_found_again(engine, tmp_path):
    path = tmp_path / "kv" / "a.safetensors"
    cache = archived(engine, ADAKV, on_disk(engine, path))
    entries = len(IDS) * engine.kv_bytes_per_token
    assert cache.archived().host == 0 and cache.archived().disk > entries
    assert cache.memory() == read(engine, IDS, ADAKV)[0].memory()
    for name in ("snapkv", "expected-attention", "full"):
        engine.choose(cache, parse_method(name))
        same_segments(cache, read(engine, IDS, parse_method(name))[0])
    found = load_archives(path, IDS, KEY)
    assert sum((a.memory() for a in found), Memory()) == cache.archived()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_damaged_archive_is_noticed_when_it_is_used(engine, tmp_path):
    path = tmp_path / "a.safetensors"
    archived(engine, ADAKV, on_disk(engine, path))
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 1
    path.write_bytes(data)
    cache = read(engine, IDS, ADAKV)[0]
    for layer, archive in zip(cache.layers, load_archives(path, IDS, KEY), strict=True):
        layer.archive = archive
    with pytest.raises(KvchatError, match="damaged"):
        engine.choose(cache, ADAKV)


@pytest.mark.parametrize("call", [0, 5, 15])
def test_a_disk_that_fails_ends_the_archive_and_not_the_reading(
    engine, tmp_path, monkeypatch, call
):
    import os

    from kvchat.engine.store import atomic

    real, count = os.write, []

    def full(*arguments):
        count.append(1)
        if len(count) > call:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(atomic.os, "write", full)
    archiving = on_disk(engine, tmp_path / "a.safetensors")
    cache = archived(engine, ADAKV, archiving)
    assert archiving.problem.errno == 28 and not can_choose(cache, ADAKV)
    same_segments(cache, read(engine, IDS, ADAKV)[0])
    assert os.listdir(tmp_path) == []


def test_a_reading_that_is_stopped_leaves_no_file(engine, tmp_path):
    archiving = on_disk(engine, tmp_path / "a.safetensors")
    with archiving:
        work = engine.prefill(IDS, [Compression(ADAKV)], archiving=archiving)
        next(work)
        work.close()
    assert list(tmp_path.iterdir()) == []


BOOK = "The keeper counted ships. At night he counted the stars above the sea. " * 8


@pytest.fixture
def session(chat_folder):
    folder = chat_folder("byte-level", "chatml")
    engine = LoggedEngine(load_engine(folder))
    session = Session(engine, Dialogue(Tokenizer.load(folder)), by_question=True)
    ids = session.dialogue.document(BOOK)
    drain(session.prefill(ids, ADAKV, archiving=InMemory()))
    return session


def positions(session):
    return [segment.position.tolist() for segment in session.cache.segments()]


def test_every_question_of_a_session_chooses_for_itself(session):
    chosen = [positions(session)]
    for question in ("What?", "And at night?"):
        ask(session, question, max_tokens=5)
        assert session.question_seconds > 0
        chosen.append(positions(session))
    assert chosen[0] != chosen[1] != chosen[2]
    drain(session.more(max_tokens=3))
    assert positions(session) == chosen[2] and session.question_seconds is None
    session.undo(1)
    ask(session, "And at night?", max_tokens=5)
    assert positions(session) == chosen[2]


@pytest.mark.parametrize("tokens", [1, 5])
def test_an_answer_that_goes_on_after_an_undo_has_its_own_entries_again(session, tokens):
    ask(session, "What?", max_tokens=tokens)
    chosen = positions(session)
    drain(session.more(max_tokens=4))
    wanted = session.turns[-1].tokens
    session.clear()
    ask(session, "What?", max_tokens=tokens)
    ask(session, "And at night?", max_tokens=5)
    assert positions(session) != chosen
    session.undo(1)
    assert positions(session) == chosen
    drain(session.more(max_tokens=4))
    assert session.turns[-1].tokens == wanted


def test_a_question_that_is_abandoned_leaves_what_was_chosen(session):
    ask(session, "What?", max_tokens=5)
    before = positions(session)
    work = session.ask("And at night?", max_tokens=5)
    while not isinstance(next(work), Delta):
        pass
    assert positions(session) != before
    work.close()
    assert positions(session) == before and len(session.turns) == 1


def test_choosing_changes_method_and_budget_and_keeps_the_turns(session):
    ask(session, "What?", max_tokens=5)
    log, turns = list(session.engine.log), list(session.turns)
    assert session.choose(parse_method("streamingllm:budget=70%"))
    assert sum(s.memory().device for s in session.cache.segments()) > 0
    assert session.engine.log == log and session.turns == turns
    assert not session.choose(parse_method("kvzip"))
    ask(session, "And at night?", max_tokens=5)
    assert session.question_seconds is None, (
        "sinks and newest entries are the same for all questions"
    )
    drain(session.recompress(ADAKV))
    assert not session.choose(ADAKV), "a reading without an archive has none"


def test_folded_turns_stay_behind_a_document_that_is_chosen_anew(chat_folder):
    folder = chat_folder("byte-level", "chatml")
    engine = LoggedEngine(load_engine(folder))
    dialogue = Dialogue(Tokenizer.load(folder))
    method = parse_method("adakv:budget=40%,window=8")
    session = Session(engine, dialogue, (), 0, tail_budget=100, by_question=True)
    drain(session.prefill(dialogue.document(BOOK), method, archiving=InMemory()))
    for number in range(6):
        ask(session, f"What about number {number}?", max_tokens=6)
    assert session.compacted > 0
    for layer in session.cache.layers:
        first, chat = layer.segments
        assert first.span == (0, len(session.document)) and chat.span[0] == len(session.document)
    assert session.choose(parse_method("snapkv:budget=20%,window=8")) and session.compacted > 0
