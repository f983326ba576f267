"""Tokens from a step that is recorded and run again equal those that are decoded eagerly."""

from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

import pytest
import torch

from kvchat.engine.attention.torch_backend import TorchBackend, plain_attend
from kvchat.engine.cache.pq import PQSegment
from kvchat.engine.cache.scratch import in_file
from kvchat.engine.decode import graph
from kvchat.engine.decode.loop import EAGER, GRAPH, LOG, Writer
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method
from kvchat.errors import KvchatError
from tests.engine import tiny
from tests.engine.recorder import CACHES, WARM, Recorder, Recording, begun, written
from tests.engine.scripted import ask, new_session
from tests.support.closeness import assert_close

REASON = "operation not permitted when stream is capturing"


@pytest.fixture
def new_engine(checkpoint):
    """Engines whose tokens are recorded by a `Recorder`, or decoded eagerly without."""

    def make(recorder=None):
        engine = tiny.load_engine(checkpoint())
        engine.writer = Writer(engine.model, recorder, "" if recorder else "a test")
        return engine

    return make


LATE = tiny.random_ids(56)  # the tail has room for 64: it grows, and is recorded again


@pytest.mark.parametrize("talk", [(), LATE], ids=["", "late"])
@pytest.mark.parametrize("sampling", [Sampling(), WARM], ids=["greedy", "sampled"])
@pytest.mark.parametrize("method", CACHES)
def test_recorded_tokens_are_the_plain_ones(new_engine, method, sampling, talk):
    """The recorder also refuses whatever would make the host wait for the device."""
    recorder = Recorder()
    engine = new_engine(recorder)
    tokens, counted, after = written(engine, method, sampling, 30, talk)
    plain_tokens, plain_counted, plain_after = written(new_engine(), method, sampling, 30, talk)
    assert tokens == plain_tokens and counted == plain_counted
    assert_close("logits", after, plain_after, 1e-5)
    again = bool(talk)
    assert (len(recorder.recordings), recorder.replays) == (1 + again, 28 - 2 * again)
    assert engine.writer.way == GRAPH


@pytest.mark.parametrize("recorded", [True, False])
def test_eight_tokens_and_eight_more_are_sixteen(new_engine, recorded):
    """As `/more` goes on: the last token is fed, the sampler is told what was drawn."""
    sampling = replace(WARM, repeat_penalty=1.3)
    engine = new_engine(Recorder() if recorded else None)
    want = list(islice(engine.decode(*begun(engine), sampling), 16))
    cache, logits = begun(engine)
    first = list(islice(engine.decode(cache, logits, sampling), 8))
    logits = drain(engine.extend(cache, first[-1:]))
    more = list(islice(engine.decode(cache, logits, sampling, first), 8))
    assert first + more == want


def test_the_late_token_leaves_no_trace_in_a_conversation(folder):
    """Answers end by count, by a stop string, by the reader; a turn is taken back."""
    turns = []
    for recorder in (Recorder(), None):
        session = new_session(folder)
        session.engine.writer = Writer(session.engine.model, recorder, "" if recorder else "a test")
        first = ask(session, "What did he count?", sampling=WARM, max_tokens=9)
        ask(session, "And at night?", sampling=WARM, max_tokens=20, stop=[first.answer[2:4]])
        left = session.ask("Nobody waits for this", sampling=WARM, max_tokens=30)
        for _ in islice(left, 6):
            pass
        left.close()
        session.undo()
        ask(session, "And at night?", max_tokens=11)
        ask(session, "Why?", max_tokens=5)
        turns.append((session.turns, session.cache.position, session.engine.log))
    assert turns[0] == turns[1]
    assert recorder is None and turns[0][0]


def test_numbers_that_break_are_noticed_one_token_late(new_engine, monkeypatch):
    """-1 is what the host is told; nobody looks it up as a token."""
    engine = new_engine(Recorder())
    cache, logits = begun(engine)
    factor, real = torch.ones(1), engine.model.predicted
    monkeypatch.setattr(engine.model, "predicted", lambda h: real(h) * factor)
    tokens = engine.decode(cache, logits, Sampling())
    assert len(list(islice(tokens, 5))) == 5
    factor.fill_(torch.nan)
    assert next(tokens) >= 0, "it was on its way already"
    with pytest.raises(KvchatError, match="NaN"):
        next(tokens)


def test_what_cannot_be_recorded_is_decoded_eagerly(new_engine, monkeypatch, folder):
    engine = new_engine(Recorder())
    inside = "pqcache:budget=10%,dense_below=0,home=disk"
    monkeypatch.setattr(PQSegment, "by_itself", property(lambda own: not in_file(own.pool)))
    for method, why in ((inside, "pq"), ("pqcache:budget=10%,dense_below=0", ""), ("full", "")):
        assert engine.writer.refusal(begun(engine, method)[0]).partition(" ")[0] == why
    session = new_session(folder)
    session.tail_budget = 128
    session.engine.writer = Writer(session.engine.model, Recorder())
    assert session.engine.writer.refusal(session.cache) == ""
    session.adopt(session.cache, session.document, parse_method("adakv:budget=25%"))
    ask(session, "What did he count?", max_tokens=3)
    assert session.engine.writer.way == GRAPH, "observed queries are shown afterwards"
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert Writer.on(engine.model, cpu).way.startswith(EAGER)
    writer = Writer.on(engine.model, cuda)
    assert writer.refused == "" and writer.record is graph.cuda_graph
    monkeypatch.setenv("KVCHAT_GRAPH", "off")
    assert Writer.on(engine.model, cuda).way == f"{EAGER}: KVCHAT_GRAPH=off"


def test_a_recording_that_fails_is_said_and_not_tried_again(new_engine, monkeypatch):
    tried, said = [], []

    def failing(work):
        tried.append(work)
        raise RuntimeError(f"{REASON}\nCUDA kernel errors")

    plain_tokens, plain_counted, _ = written(new_engine(), "full", WARM, 20)
    monkeypatch.setattr(LOG, "info", lambda text, *given: said.append(text % given))
    engine = new_engine(failing)
    tokens, counted, _ = written(engine, "full", WARM, 20)
    assert tokens == plain_tokens and counted == plain_counted
    cache, logits = begun(engine)
    list(islice(engine.decode(cache, logits, WARM), 4))
    assert len(tried) == 1
    way = engine.writer.way
    assert way.startswith(EAGER) and way.endswith(REASON) and said == [f"decoding: {way}"]


@pytest.mark.parametrize("method", CACHES)
def test_a_plain_step_waits_for_its_token_alone(new_engine, monkeypatch, method):
    """As on a card without kernels: nothing but the id comes back to the host."""
    engine = new_engine()
    cache, logits = begun(engine, method)
    monkeypatch.setattr(TorchBackend, "attend", lambda _, *given: plain_attend(*given))
    tokens = engine.decode(cache, logits, WARM)
    list(islice(tokens, 2))
    recording = Recording(refuse=False)
    with recording:
        list(islice(tokens, 3))
    assert len(recording.waits) == 3, recording.waits


def test_a_recording_is_made_as_cuda_wants_it(monkeypatch):
    """Against a stand-in for the interface of torch; a card has never seen it.

    What fails leaves the thread on the stream that it was on.
    """
    log, streams = [], []

    class Graph:
        def replay(self):
            log.append("replay")

    @contextmanager
    def capture(made, **options):
        assert isinstance(made, Graph) and options == {"capture_error_mode": "thread_local"}
        log.append("begin")
        yield
        log.append("end")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "mine")
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    run = graph.cuda_graph(lambda: log.append("work"))
    run(), run()
    assert log == ["begin", "work", "end", "replay", "replay"]
    with pytest.raises(ZeroDivisionError):
        graph.cuda_graph(lambda: 1 // 0)
    assert streams == ["mine", "mine"]


def test_a_token_is_read_after_its_own_event(monkeypatch):
    """Two places take turns; the one that is read was copied before the event that is awaited."""
    log, empty = [], torch.empty

    class Event:
        made = 0

        def __init__(self):
            self.number = Event.made
            Event.made += 1

        def record(self):
            log.append(f"sent {self.number}")

        def synchronize(self):
            log.append(f"awaited {self.number}")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory, **rest: empty(*shape, **rest))
    coming = graph.Coming(torch.device("cuda"))
    coming.send(torch.tensor([3]))
    got = []
    for token in (4, 5):
        coming.send(torch.tensor([token]))
        got.append(coming.receive())
    got.append(coming.receive())
    assert got == [3, 4, 5]
    assert log == ["sent 0", "sent 1", "awaited 0", "sent 0", "awaited 1", "awaited 0"]
