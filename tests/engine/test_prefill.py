"""Prefill: the same whatever the chunks, probes and companions, interruptible, and with half the
chunk where memory runs out. What methods see is the attention of transformers."""

import pytest
import torch

from kvchat.engine.budget import Budget
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import Progress, Smaller, drain
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.needs import Needs
from kvchat.engine.methods.scores import by_head, observed_mass
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.window import AdaKV
from kvchat.engine.model.layers import Block
from kvchat.engine.prefill.prefill import Compression
from kvchat.errors import KvchatError, is_out_of_memory
from tests.engine.scenes import Recorder, assert_same_cache, kept_tokens
from tests.engine.scripted import BOOK, ask, new_session
from tests.engine.tiny import load_engine, load_oracle, oracle_logits, random_ids, read
from tests.support.closeness import assert_close

IDS, PROBE = random_ids(90), random_ids(11, seed=2)


@pytest.mark.parametrize("chunk", [1, 4, 7, 2048])
def test_extensions_and_scores_are_those_of_transformers(checkpoint, oracle, chunk):
    engine, want = load_engine(checkpoint(), chunk=chunk), oracle_logits(oracle, IDS)
    cache, _ = read(engine, IDS[:40])
    assert_close("logits", drain(engine.extend(cache, IDS[40:70])), want[69], 1e-5)
    for _ in range(2):
        assert_close("logits", engine.score(cache, IDS[70:]), want[70:], 1e-5)
    assert cache.position == 70
    assert_close("after", drain(engine.extend(cache, IDS[70:71])), want[70], 1e-5)


def test_compressions_of_one_prefill_equal_prefills_of_their_own(engine):
    specs = ["full", "adakv:budget=25%", "snapkv:budget=40", "adakv:budget=25%,window=8",
             "streamingllm:budget=50%", "full"]  # fmt: skip
    jobs = [Compression(parse_method(spec)) for spec in specs]
    jobs.append(Compression(parse_method("adakv:budget=25%"), probes=(0,)))
    together = drain(engine.prefill(IDS, jobs, [PROBE]))
    for cache, job in zip(together.caches, jobs, strict=True):
        alone = drain(engine.prefill(IDS, [job], [PROBE] if job.probes else []))
        assert_same_cache(cache, alone.caches[0])
        assert torch.equal(alone.logits, together.logits)
    chosen = [kept_tokens(next(together.caches[n].segments())) for n in (1, 6)]
    assert chosen[0] != chosen[1], "a probe changes what is kept"


def test_probes_leave_no_trace_and_caches_of_one_prefill_live_apart(engine):
    plain, logits = read(engine, IDS)
    jobs = [Compression(Full()), Compression(Full())]
    reading = drain(engine.prefill(IDS, jobs, [PROBE, PROBE[:3]]))
    first, second = reading.caches
    assert_same_cache(first, plain)
    assert torch.equal(reading.logits, logits)
    assert all(layer.tail.length == 0 for layer in first.layers)
    assert first.memory() == plain.memory()
    want = drain(engine.extend(plain, PROBE))
    drain(engine.extend(first, IDS[:30]))
    assert torch.equal(drain(engine.extend(second, PROBE)), want)


@torch.inference_mode()
def weights_of(oracle, ids: list[int]) -> list[torch.Tensor]:
    """Attention weights `[H*G, T, T]` of each layer."""
    return [a[0] for a in oracle(torch.tensor([ids]), output_attentions=True).attentions]


@pytest.mark.parametrize("chunk", [5, 2048])
def test_scores_of_the_document_s_end_are_its_attention_weights(checkpoint, chunk):
    engine, oracle = load_engine(checkpoint(), chunk=chunk), load_oracle(checkpoint(), "eager")
    recorder = Recorder(Needs(queries=16))
    drain(engine.prefill(IDS, [Compression(recorder)]))
    for seen, weights in zip(recorder.shown, weights_of(oracle, IDS), strict=True):
        want = by_head(weights[:, -16:].mean(dim=1), 2)
        assert_close("all entries", by_head(observed_mass(seen, len(IDS)), 2), want, 1e-5)
        assert_close("the prefix", by_head(observed_mass(seen, 70), 2), want[:, :70], 1e-5)


def test_scores_of_probes_are_their_attention_weights(engine, checkpoint):
    """Each probe follows the document by itself; its last queries, as many as wanted, count."""
    oracle = load_oracle(checkpoint(), "eager")
    probes, recorder = [PROBE, random_ids(20, seed=3)], Recorder(Needs(queries=16))
    drain(engine.prefill(IDS, [Compression(recorder, probes=(0, 1))], probes))
    parts = [weights_of(oracle, IDS + probe) for probe in probes]
    for layer, seen in enumerate(recorder.shown):
        assert len(seen.queries) == 11 + 16
        entries = [part[layer][:, len(IDS) :][:, -16:, : len(IDS)] for part in parts]
        want = by_head(torch.cat(entries, dim=1).mean(dim=1), 2)
        assert_close("mass", by_head(observed_mass(seen, len(IDS)), 2), want, 1e-5)


def test_a_method_sees_keys_after_rope_and_its_layer(engine, checkpoint):
    recorder = Recorder(Needs(queries=16))
    drain(engine.prefill(IDS, [Compression(recorder)]))
    oracle = load_oracle(checkpoint())
    with torch.inference_mode():
        past = oracle(torch.tensor([IDS]), use_cache=True).past_key_values
    for number, seen in enumerate(recorder.shown):
        assert (seen.layer, seen.num_layers, seen.start) == (number, 2, 0)
        assert_close("keys", seen.keys, past.layers[number].keys[0], 1e-5)
        assert_close("values", seen.values, past.layers[number].values[0], 1e-5)


def test_an_interrupted_extension_leaves_the_cache_as_it_was(checkpoint):
    engine = load_engine(checkpoint(), chunk=4)
    cache, _ = read(engine, IDS, AdaKV(Budget(fraction=0.5)))
    drain(engine.extend(cache, PROBE))
    position, events = cache.position, 2 * 5
    for stop in range(1, events + 1):
        reading = engine.extend(cache, IDS[:20])
        for _ in range(stop):
            next(reading)
        reading.close()
        assert cache.position == position
        assert [layer.tail.length for layer in cache.layers] == [len(PROBE)] * 2
    fresh, _ = read(engine, IDS, AdaKV(Budget(fraction=0.5)))
    drain(engine.extend(fresh, PROBE))
    want = drain(engine.extend(fresh, IDS[:20]))
    assert torch.equal(drain(engine.extend(cache, IDS[:20])), want)


def test_progress_counts_tokens_times_layers_and_real_bytes(checkpoint):
    engine = load_engine(checkpoint(), chunk=40)
    events: list[Progress] = []
    reading = drain(engine.prefill(IDS, [Compression(parse_method("adakv"))]), events.append)
    assert [e.done for e in events] == [40, 80, 90, 130, 170, 180]
    assert {e.total for e in events} == {180} and {e.layers for e in events} == {2}
    assert [e.layer for e in events] == [0, 0, 0, 1, 1, 1]
    sizes = [s.memory().total for s in reading.caches[0].segments()]
    assert [e.kv_bytes for e in events] == [0, 0, *[sizes[0]] * 3, sum(sizes)]


CPU = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 99 bytes"


@pytest.fixture
def scarce(monkeypatch):
    """`scarce(calls)`: those calls of a block's second half find no memory."""

    def install(calls, error=CPU):
        made, finish = [0], Block.finish

        def failing(self, x, o):
            made[0] += 1
            if made[0] in calls:
                raise RuntimeError(error)
            return finish(self, x, o)

        monkeypatch.setattr(Block, "finish", failing)
        return made

    return install


def events_of(work):
    events = []
    return events, drain(work, events.append)


@pytest.mark.parametrize("call", [1, 2, 4, 5, 8])
def test_a_reading_goes_on_with_half_the_chunk(checkpoint, scarce, call):
    ids, method = random_ids(200), Compression(parse_method("adakv:budget=40%"))
    _, want = events_of(load_engine(checkpoint(), chunk=64).prefill(ids, [method]))
    scarce({call})
    events, got = events_of(load_engine(checkpoint(), chunk=64).prefill(ids, [method]))
    assert [e.chunk for e in events if isinstance(e, Smaller)] == [32]
    done = [e.done for e in events if isinstance(e, Progress)]
    assert done == sorted(done) and done[-1] == 400
    assert torch.allclose(got.logits, want.logits, atol=1e-5)
    assert_same_cache(got.caches[0], want.caches[0], 1e-5)


def test_a_second_time_is_an_error_and_the_session_stays(scarce, folder):
    session = new_session(folder, chunk=16)
    first = ask(session, "What?", max_tokens=4).answer
    before = (session.cache, session.cache.position, session.turns)
    scarce({2, 3})
    with pytest.raises(RuntimeError) as caught:
        events_of(session.recompress(parse_method("adakv")))
    assert is_out_of_memory(caught.value)
    assert (session.cache, session.cache.position, session.turns) == before
    session.clear()
    assert ask(session, "What?", max_tokens=4).answer == first


def test_other_errors_are_not_tried_again(checkpoint, scarce):
    made = scarce({1}, "shapes")
    work = load_engine(checkpoint()).prefill(random_ids(20), [Compression(parse_method("full"))])
    with pytest.raises(RuntimeError, match="shapes"):
        drain(work)
    assert made == [1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_that_are_no_numbers_are_said_to_be(temperature, folder):
    session = new_session(folder)
    with torch.inference_mode():
        session.engine.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(KvchatError, match="NaN") as caught:
        ask(session, "What?", sampling=Sampling(temperature=temperature))
    assert caught.value.exit_code == 3 and session.turns == []


KVZIP, ASKALL = "kvzip:budget=40%,chunk=40", "askall:budget=40%"


@pytest.mark.parametrize(("spec", "call"), [(KVZIP, 3), (KVZIP, 5), (ASKALL, 3), (ASKALL, 6)])
def test_a_replay_goes_on_with_half_the_chunk(scarce, spec, call, folder):
    """Calls 1 and 2 of a layer are the document's chunks, then come its replays: 3 and 1."""
    method = parse_method(spec)
    want, got = (new_session(folder, book=BOOK * 4, chunk=50) for _ in range(2))
    assert 60 < len(want.document) < 90
    events_of(want.recompress(method))
    scarce({call})
    events, _ = events_of(got.recompress(method))
    assert [e.chunk for e in events if isinstance(e, Smaller)] == [25]
    assert_same_cache(got.cache, want.cache, 1e-5)
