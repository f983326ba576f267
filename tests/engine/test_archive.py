"""All entries of a document beside what is kept of them: choosing again equals reading again."""

import os
from itertools import count, islice

import pytest
import torch

from kvchat.engine.budget import Budget
from kvchat.engine.cache.segment import Memory
from kvchat.engine.events import Delta, Smaller, drain
from kvchat.engine.methods import METHODS
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.needs import Needs
from kvchat.engine.methods.simple import Full
from kvchat.engine.prefill import walk
from kvchat.engine.prefill.archive_writer import GATED, InMemory
from kvchat.engine.prefill.prefill import Compression
from kvchat.engine.selection import can_choose
from kvchat.engine.store import atomic
from kvchat.engine.store.archive import OnDisk, load_archives
from kvchat.engine.store.contents import Shape
from kvchat.errors import KvchatError
from tests.engine.scenes import assert_same_cache, kept_tokens
from tests.engine.scripted import ask, new_session, talk
from tests.engine.tiny import load_engine, random_ids, read
from tests.support.closeness import assert_close

IDS, QUESTION = random_ids(180), random_ids(9, seed=3)
KEY = "a" * 32
SHAPE = Shape(2, 16, torch.float32)  # of the tiny models
BOOK = "The keeper counted ships. At night he counted the stars above the sea. " * 8
CHOOSING = [name for name, entry in METHODS.items() if not entry.told]
ADAKV = parse_method("adakv:budget=40%,window=8")


def archived(engine, method=ADAKV, archiving=None):
    archiving = archiving or InMemory()
    with archiving:
        reading = drain(engine.prefill(IDS, [Compression(method)], archiving=archiving))
    return reading.caches[0]


def kept_in(cache):
    return [kept_tokens(segment) for segment in cache.segments()]


def on_disk(engine, path):
    return OnDisk(path, engine.config.num_layers, IDS, KEY, {"title": "a book"})


@pytest.fixture(scope="module")
def archive(engine):
    """A cache that every test of this file may choose anew, and none may extend for good."""
    return archived(engine, archiving=InMemory(GATED | Needs(column_mass=True)))


@pytest.mark.parametrize("name", [*CHOOSING, "snapkv:bits=4", "adakv:window=60"])
def test_choosing_again_equals_reading_again(engine, archive, name):
    method = parse_method(name)
    assert can_choose(archive, method)
    engine.choose(archive, method)
    assert_same_cache(archive, read(engine, IDS, method)[0])
    assert archive.archived().host >= len(IDS) * engine.kv_bytes(1)


def test_what_is_dear_is_observed_for_a_method_that_needs_it_only(engine):
    archive = archived(engine)
    for name in ("h2o", "kvmerger", "kvzip", "askall", "adakv:window=100"):
        assert not can_choose(archive, parse_method(name))
    cache = archived(engine, parse_method("h2o:budget=50%"))
    engine.choose(cache, parse_method("h2o:budget=20%"))
    assert_same_cache(cache, read(engine, IDS, parse_method("h2o:budget=20%"))[0])


@pytest.mark.parametrize("name", ["kvzip", "kvzip+", "askall"])
def test_what_was_told_while_reading_is_kept(engine, tmp_path, name):
    method, other = (parse_method(name, Budget.parse(each)) for each in ("50%", "20%"))
    caches = [archived(engine, method), archived(engine, method, on_disk(engine, tmp_path / "a"))]
    want = read(engine, IDS, other)[0]
    for cache in caches:
        engine.choose(cache, other)
        assert_same_cache(cache, want)


@pytest.mark.parametrize("method", ["adakv:budget=40%,window=8", "kvzap:budget=25%", "snapkv"])
def test_where_all_is_kept_another_method_needs_no_prefill(folder, method):
    """And what it evicts is freed."""
    session, chosen = new_session(folder, book=3 * BOOK), parse_method(method)
    full = session.memory().total
    assert session.cache.archived().total < 0.2 * full  # what was observed, and no entries
    assert session.choose(chosen)
    assert session.memory().total < 0.6 * full and session.cache.archived().total == 0
    again = new_session(folder, book=3 * BOOK, method=chosen)
    assert_same_cache(session.cache, again.cache)
    assert not session.choose(Full())  # it is gone
    answers = [ask(each, "Who?", max_tokens=6).answer for each in (session, again)]
    assert answers[0] == answers[1]


def test_what_a_method_needs_is_not_there_for_one_that_replays(folder):
    session = new_session(folder)
    assert not session.choose(parse_method("kvzip")) and session.cache.archived().total


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
    assert kept_in(cache) == kept_in(seen)
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
        list(islice(work, steps))
        work.close()
        assert cache.position == len(IDS) and cache.layers[0].tail.length == 0
        assert [layer.segments for layer in cache.layers] == before
        assert all(layer.exact is None and layer.asking is None for layer in cache.layers)


def test_memory_that_runs_out_does_not_count_queries_twice(checkpoint, monkeypatch):
    engine = load_engine(checkpoint())
    want = archived(engine)
    drain(engine.extend_choosing(want, QUESTION, ADAKV))
    cache, step, calls = archived(engine), walk.step, []

    def failing(block, layer, x, rotation):
        result = step(block, layer, x, rotation)
        calls.append(len(x))
        if len(calls) == 2:
            raise MemoryError
        return result

    monkeypatch.setattr(walk, "step", failing)
    events = list(engine.extend_choosing(cache, QUESTION, ADAKV))
    assert any(isinstance(event, Smaller) for event in events)
    assert_same_cache(cache, want, 1e-5)


@pytest.mark.parametrize("beside", [False, True])
def test_archives_on_disk_choose_alike_and_are_found_again(engine, tmp_path, monkeypatch, beside):
    """Written at once, or as a card has it: by a thread, beside the next layer."""
    monkeypatch.setattr("kvchat.engine.store.archive.beside", lambda entries: beside)
    path = tmp_path / "kv" / "a.safetensors"
    cache = archived(engine, ADAKV, on_disk(engine, path))
    entries = len(IDS) * engine.kv_bytes(1)
    assert cache.archived().host == 0 and cache.archived().disk > entries
    assert cache.memory() == read(engine, IDS, ADAKV)[0].memory()
    for name in ("snapkv", "expected-attention", "full"):
        engine.choose(cache, parse_method(name))
        assert_same_cache(cache, read(engine, IDS, parse_method(name))[0])
    found = load_archives(path, IDS, KEY, 2, SHAPE)
    assert sum((a.memory() for a in found), Memory()) == cache.archived()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_damaged_archive_is_noticed_when_it_is_used(engine, tmp_path):
    path = tmp_path / "a.safetensors"
    archived(engine, ADAKV, on_disk(engine, path))
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 1
    path.write_bytes(data)
    cache = read(engine, IDS, ADAKV)[0]
    for layer, archive in zip(cache.layers, load_archives(path, IDS, KEY, 2, SHAPE), strict=True):
        layer.archive = archive
    with pytest.raises(KvchatError, match=r"a\.safetensors"):
        engine.choose(cache, ADAKV)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("call", [0, 5, 15])
def test_a_disk_that_fails_ends_the_archive_and_not_the_reading(
    engine, tmp_path, monkeypatch, call, beside
):
    monkeypatch.setattr("kvchat.engine.store.archive.beside", lambda entries: beside)
    real, calls = os.write, count()

    def full(*arguments):
        if next(calls) >= call:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    archiving = on_disk(engine, tmp_path / "a.safetensors")
    with archiving:  # of a prefill that is stopped
        work = engine.prefill(IDS, [Compression(ADAKV)], archiving=archiving)
        next(work)
        work.close()
    assert os.listdir(tmp_path) == []
    monkeypatch.setattr(atomic.os, "write", full)
    archiving = on_disk(engine, tmp_path / "a.safetensors")
    cache = archived(engine, ADAKV, archiving)
    assert archiving.problem.errno == 28 and not can_choose(cache, ADAKV)
    assert_same_cache(cache, read(engine, IDS, ADAKV)[0])
    assert os.listdir(tmp_path) == []


@pytest.fixture
def session(folder):
    return new_session(folder, book=BOOK, method=ADAKV, archiving=InMemory(), by_question=True)


def test_every_question_of_a_session_chooses_for_itself(session):
    chosen = [kept_in(session.cache)]
    for question in ("What?", "And at night?"):
        ask(session, question, max_tokens=5)
        assert session.question_seconds > 0
        chosen.append(kept_in(session.cache))
    assert chosen[0] != chosen[1] != chosen[2]
    drain(session.more(max_tokens=3))
    assert kept_in(session.cache) == chosen[2] and session.question_seconds is None
    session.undo(1)
    ask(session, "And at night?", max_tokens=5)
    assert kept_in(session.cache) == chosen[2]


@pytest.mark.parametrize("tokens", [1, 5])
def test_an_answer_that_goes_on_after_an_undo_has_its_own_entries_again(session, tokens):
    ask(session, "What?", max_tokens=tokens)
    chosen = kept_in(session.cache)
    drain(session.more(max_tokens=4))
    wanted = session.turns[-1].tokens
    session.clear()
    ask(session, "What?", max_tokens=tokens)
    ask(session, "And at night?", max_tokens=5)
    assert kept_in(session.cache) != chosen
    session.undo(1)
    assert kept_in(session.cache) == chosen
    drain(session.more(max_tokens=4))
    assert session.turns[-1].tokens == wanted


def test_a_question_that_is_abandoned_leaves_what_was_chosen(session):
    ask(session, "What?", max_tokens=5)
    before = kept_in(session.cache)
    work = session.ask("And at night?", max_tokens=5)
    while not isinstance(next(work), Delta):
        pass
    assert kept_in(session.cache) != before
    work.close()
    assert kept_in(session.cache) == before and len(session.turns) == 1


def test_choosing_changes_method_and_budget_and_keeps_the_turns(session):
    ask(session, "What?", max_tokens=5)
    log, turns = list(session.engine.log), list(session.turns)
    assert session.choose(parse_method("streamingllm:budget=70%"))
    assert sum(s.memory().device for s in session.cache.segments()) > 0
    assert session.engine.log == log and session.turns == turns
    assert not session.choose(parse_method("kvzip"))
    ask(session, "And at night?", max_tokens=5)
    assert session.question_seconds is None, "sinks and newest are the same for all questions"
    drain(session.recompress(ADAKV))
    assert not session.choose(ADAKV), "a reading without an archive has none"


def test_folded_turns_stay_behind_a_document_that_is_chosen_anew(session):
    session.tail_budget = 100
    session.adopt(session.cache, session.document, ADAKV)
    talk(session, *(f"What about number {number}?" for number in range(6)))
    assert session.compacted > 0
    for layer in session.cache.layers:
        first, chat = layer.segments
        assert first.span == (0, len(session.document)) and chat.span[0] == len(session.document)
    assert session.choose(parse_method("snapkv:budget=20%,window=8")) and session.compacted > 0
