"""A recorded step over everything that a cache may be: families with norms on both sides, windows,
entries that a token finds by itself."""

from itertools import islice

import pytest

from kvchat.engine import ops
from kvchat.engine.compaction import folding, watch
from kvchat.engine.decode import loop
from kvchat.engine.decode.loop import GRAPH, Writer
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method
from kvchat.kernels import reference
from tests.engine import tiny
from tests.engine.recorder import Recorder, Waited
from tests.engine.scripted import ask, new_session
from tests.engine.test_families import CASES
from tests.support.closeness import assert_close

FAMILIES = ("qwen3", "olmo2", "granite", "gemma3", "gemma2", "phi-4-mini", "ministral3", "glm4",
            "smollm3 sliding")  # fmt: skip
IDS = tiny.random_ids(90)
RETRIEVED = "pqcache:budget=30%,dense_below=0,block=4"


def decoded(engine, recorder, count, method="full"):
    """Tokens, and the logits after them."""
    engine.writer = Writer(engine.model, recorder, "" if recorder else "a test")
    cache, logits = tiny.read(engine, IDS, parse_method(method))
    tokens = list(islice(engine.decode(cache, logits, Sampling()), count))
    return tokens, drain(engine.extend(cache, tokens[-1:])), cache


@pytest.mark.parametrize("family", FAMILIES)
def test_families_write_what_they_write_without(tmp_path, family):
    engine = tiny.load_engine(
        tiny.save_model(tmp_path, **({"num_hidden_layers": 3} | CASES[family]))
    )
    recorder = Recorder()
    tokens, after, _ = decoded(engine, recorder, 12)
    assert engine.writer.way == GRAPH and recorder.replays == 10
    plain, plain_after, _ = decoded(engine, None, 12)
    assert tokens == plain
    assert_close("logits", after, plain_after, 1e-5)


@pytest.mark.parametrize("aggregate", ["softmax_sum", "max"])
@pytest.mark.parametrize("code", ["code_bits=3", "m=4,code_bits=4"], ids=["listed", "scored"])
def test_tokens_find_their_entries_by_themselves(checkpoint, monkeypatch, code, aggregate):
    """Recorded anew when entries leave the window: after every four tokens."""
    monkeypatch.setattr(ops, "pq_select", reference.pq_select)  # as on a card: nobody waits
    engine, method = tiny.load_engine(checkpoint()), f"{RETRIEVED},{code},aggregate={aggregate}"
    recorder = Recorder()
    tokens, after, cache = decoded(engine, recorder, 14, method)
    assert engine.writer.way == GRAPH and len(recorder.recordings) == 4
    plain, plain_after, other = decoded(engine, None, 14, method)
    assert tokens == plain
    assert_close("logits", after, plain_after, 1e-5)
    for layer, twin in zip(cache.layers, other.layers, strict=True):
        assert layer.sliding.span == twin.sliding.span and layer.sliding.late.length == 12
    if aggregate == "softmax_sum":
        assert cache.captured == pytest.approx(other.captured, rel=0.02)  # one is on its way


def test_what_asks_the_host_breaks_a_recording(checkpoint, monkeypatch):
    """The recorder refuses what a card would: a number that the host reads."""
    engine = tiny.load_engine(checkpoint())
    cache, logits = tiny.read(engine, IDS, parse_method(RETRIEVED + ",code_bits=3"))
    kept = cache.layers[0].sliding
    real = kept.entries_for
    monkeypatch.setattr(kept, "entries_for", lambda q, scale: real(q, float(q.sum()) * 0 + scale))
    engine.writer = Writer(engine.model, Recorder())
    with pytest.raises(Waited):
        list(islice(engine.decode(cache, logits, Sampling()), 4))


@pytest.mark.parametrize("method", ["adakv:budget=40%,window=8", "h2o:budget=60%",
                                    "expected-attention:budget=40%"])  # fmt: skip
@pytest.mark.parametrize("count", [1, 14])
def test_observers_see_what_they_see_without(checkpoint, method, count, monkeypatch):
    """Turns will be compressed: queries are kept meanwhile, a few tokens at a time, and shown."""
    monkeypatch.setattr(loop, "OBSERVED", 6)
    engine, found = tiny.load_engine(checkpoint()), []
    for recorder in (Recorder(), None):
        engine.writer = Writer(engine.model, recorder, "" if recorder else "a test")
        cache, logits = tiny.read(engine, IDS, parse_method(method))
        watch(cache, folding(parse_method(method), 64), len(IDS))
        logits = drain(engine.extend(cache, [5, 6, 7]))
        tokens = engine.decode(cache, logits, Sampling())
        written = list(islice(tokens, count + 1))
        tokens.close()  # one token is on its way, and counts nowhere
        found.append((written, cache.position, cache))
    (written, position, cache), (plain, other, twin) = found
    assert written == plain and position == other == len(IDS) + 3 + count
    for layer, same in zip(cache.layers, twin.layers, strict=True):
        got, want = layer.observer.tensors(), same.observer.tensors()
        assert got.keys() == want.keys() and got
        for name, tensor in want.items():
            assert_close(name, got[name].double(), tensor.double(), 1e-5)
        assert layer.observer.end == same.observer.end


def test_a_conversation_is_compressed_alike(folder):
    """Its turns are folded after each answer, by what was observed while it was written."""
    found = []
    for recorder in (Recorder(), None):
        session = new_session(folder)
        session.tail_budget = 64
        session.engine.writer = Writer(session.engine.model, recorder, "" if recorder else "a test")
        session.adopt(session.cache, session.document, parse_method("h2o:budget=60%"))
        for question in ("What did he count?", "And at night?", "Why?", "Who was there?"):
            ask(session, question, max_tokens=20)
        found.append((session.turns, session.compacted, session.cache.position))
    assert found[0] == found[1] and found[0][1] > 0
