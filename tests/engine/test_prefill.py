"""Prefill: the same whatever the chunks, probes and companions, and interruptible. What methods see
is compared with the attention weights of transformers."""

import pytest
import torch

from kvchat.engine.budget import Budget
from kvchat.engine.events import Progress, drain
from kvchat.engine.methods.adakv import AdaKV
from kvchat.engine.methods.full import Full
from kvchat.engine.methods.needs import Needs
from kvchat.engine.methods.scores import by_head, observed_mass
from kvchat.engine.methods.spec import parse_method
from kvchat.engine.prefill.prefill import Compression
from tests.engine.scenes import Recorder, assert_same_cache, kept_tokens
from tests.engine.tiny import load_engine, load_oracle, oracle_logits, random_ids, read
from tests.support.closeness import assert_close

IDS, PROBE = random_ids(90), random_ids(11, seed=2)


@pytest.mark.parametrize("chunk", [1, 7, 2048])
def test_an_extension_does_not_depend_on_chunks_either(checkpoint, oracle, chunk):
    engine = load_engine(checkpoint(), chunk=chunk)
    cache, _ = read(engine, IDS[:40])
    logits = drain(engine.extend(cache, IDS[40:]))
    assert_close("logits", logits, oracle_logits(oracle, IDS)[-1], 1e-5)


@pytest.mark.parametrize("chunk", [4, 2048])
def test_scoring_gives_every_position_s_logits_and_leaves_the_cache(checkpoint, oracle, chunk):
    engine = load_engine(checkpoint(), chunk=chunk)
    cache, _ = read(engine, IDS[:60])
    drain(engine.extend(cache, IDS[60:70]))
    want = oracle_logits(oracle, IDS)
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


def test_caches_of_one_prefill_live_apart(engine):
    reading = drain(engine.prefill(IDS, [Compression(Full()), Compression(Full())]))
    first, second = reading.caches
    want = drain(engine.extend(second, PROBE))
    with torch.inference_mode():
        second.truncate(len(IDS))
    drain(engine.extend(first, IDS[:30]))
    assert torch.equal(drain(engine.extend(second, PROBE)), want)


def test_probes_leave_no_trace(engine):
    plain, logits = read(engine, IDS)
    reading = drain(engine.prefill(IDS, [Compression(Full())], [PROBE, PROBE[:3]]))
    assert_same_cache(reading.caches[0], plain)
    assert torch.equal(reading.logits, logits)
    assert all(layer.tail.length == 0 for layer in reading.caches[0].layers)
    assert reading.caches[0].memory() == plain.memory()


@torch.inference_mode()
def weights_of(oracle, ids: list[int]) -> list[torch.Tensor]:
    """Attention weights `[H*G, T, T]` of each layer."""
    return [a[0] for a in oracle(torch.tensor([ids]), output_attentions=True).attentions]


def group_mean(weights: torch.Tensor) -> torch.Tensor:
    """`[H*G, W, N]` to the mean over queries and over the two query heads of a KV head."""
    return by_head(weights.mean(dim=1), 2)


@pytest.mark.parametrize("chunk", [5, 2048])
def test_scores_of_the_document_s_end_are_its_attention_weights(checkpoint, chunk):
    engine, oracle = load_engine(checkpoint(), chunk=chunk), load_oracle(checkpoint(), "eager")
    recorder = Recorder(Needs(queries=16))
    drain(engine.prefill(IDS, [Compression(recorder)]))
    for seen, weights in zip(recorder.shown, weights_of(oracle, IDS), strict=True):
        want = group_mean(weights[:, -16:])
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
        want = group_mean(torch.cat(entries, dim=1))
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
