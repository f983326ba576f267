"""A model over two processes beside the same in one: entries that are kept, logits and text are the
same bit for bit, memory is half, and a process that dies is told in one line."""

import os
import signal
from itertools import islice
from threading import Timer
from unittest.mock import Mock

import pytest
import torch

from kvchat.engine.budget import Budget
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.specs import parse_spec
from kvchat.engine.model.read import load_config
from kvchat.engine.model.shard import Shard
from kvchat.engine.peers import Group, broken
from kvchat.engine.prefill.archive_writer import OBSERVED, InMemory
from kvchat.engine.prefill.prefill import Compression
from kvchat.engine.ranks import Lead
from kvchat.engine.sizes import Streamed
from kvchat.engine.store import Refused
from kvchat.errors import KvchatError
from kvchat.machine import ranks
from kvchat.machine.plan import Workload, make_plan
from kvchat.prompt_cache.parts import opened, place, stored
from tests.engine.test_families import CASES
from tests.engine.tiny import random_ids, save_model
from tests.support.models import ROOT
from tests.support.ranked import PROGRAM, load_shown

DEMO = ROOT / "models" / "demo"
IDS = random_ids(140)
GREEDY = Sampling(temperature=0.0)
METHODS = {
    "full": "", "full bits=4": "", "adakv": "20%", "snapkv": "20%", "pyramidkv": "30%",
    "critical-adakv": "20%", "defensivekv": "20%", "kvcompress": "20%", "kvzip": "20%",
    "askall": "20%", "tova": "20%", "h2o": "20%", "expected-attention": "20%", "kvmerger": "50%",
    "elastic": "30%", "qaq": "30%", "pqcache dense_below=0 code_bits=4": "30%",
    "squeezed dense_below=0 per=layer": "40%",
}  # fmt: skip
FAMILIES = ["qwen2 sliding", "qwen3 with biases", "phi3, a part rotated", "olmo2", "gemma3"]


@pytest.fixture(scope="module")
def lead():
    """What another process follows, until the module has ended."""
    found = ranks.begin(2, PROGRAM)
    yield found
    ranks.finish()


@pytest.fixture(scope="module")
def pair(lead, checkpoint):
    """One small model in this process, and over two."""
    return both(checkpoint(), lead)


def both(folder, lead, weights="auto", kernels="torch"):
    config = load_config(folder)
    how = folder, config, "auto", "cpu", weights, "auto", kernels
    two = drain(load_shown(*how, lead=lead))
    two.pace(64)
    one = drain(load_shown(*how))
    one.pace(64)
    return one, two


def method_of(text, budget=""):
    name, *options = text.split()
    return parse_method(name, Budget.parse(budget) if budget else None, options)


def told(engine, method, ids=IDS, count=8):
    """What is kept, the logits of a question, and the greedy text behind it."""
    found = drain(engine.prefill(ids, [Compression(method)]))
    (cache,) = found.caches
    logits = drain(engine.extend(cache, ids[3:9]))
    text = list(islice(engine.decode(cache, logits.clone(), GREEDY), count))
    return engine.shown(cache), found.logits, logits, text


def kept_alike(kept, other, exact=False):
    """`exact`: BLAS gives the same bits for half of a matrix, unless its sides are very odd."""
    assert [(kind, lengths) for kind, lengths, _ in kept] == [(k, n) for k, n, _ in other]
    for (_, _, tensors), (_, _, others) in zip(kept, other, strict=True):
        names = [name for name in tensors if exact or name.endswith("position")]
        assert names
        assert not [name for name in names if not torch.equal(tensors[name], others[name])]


def same(one, two, exact=True):
    (kept, *first), (other, *second) = one, two
    kept_alike(kept, other, exact)
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=0 if exact else 1e-4)
    torch.testing.assert_close(first[1], second[1], rtol=0, atol=1e-4)
    assert first[2] == second[2], "greedy text"


@pytest.mark.parametrize(("method", "budget"), METHODS.items())
def test_two_keep_and_say_what_one_does(pair, method, budget):
    same(*(told(engine, method_of(method, budget)) for engine in pair))


def test_a_cache_changes_everywhere(pair):
    """Tokens taken back, a prefill left in its midst, a choice from a copy, turns compressed."""
    found = []
    for engine in pair:
        work = engine.prefill(IDS, [Compression(method_of("kvzip", "30%"))])
        next(work), next(work)
        work.close()
        copy = InMemory(OBSERVED)
        steps = engine.prefill(IDS, [Compression(method_of("adakv", "30%"))], archiving=copy)
        (cache,) = drain(steps).caches
        engine.choose(cache, method_of("snapkv", "50%"))
        drain(engine.extend(cache, IDS[:30]))
        cache.truncate(150)
        engine.watch(cache, method_of("h2o", "16"), 140)
        drain(engine.extend(cache, IDS[40:70]))
        engine.fold(cache, method_of("h2o", "16"), 140, 170)
        logits = drain(engine.extend(cache, IDS[5:9]))
        weights = engine.attended(cache, IDS[5:9], {185: 3, 186: 7}, IDS)
        found.append((engine.shown(cache), logits, weights, cache.position))
    (kept, logits, weights, position), (other, *rest) = found
    kept_alike(kept, other)
    torch.testing.assert_close(logits, rest[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(weights, rest[1], rtol=1e-3, atol=1e-5)
    assert position == rest[2] == 184


def test_ctrl_c_comes_between_two_steps(pair):
    """Both are in step behind it, whenever it was pressed."""
    one, two = pair
    work = two.prefill(IDS, [Compression(method_of("adakv", "30%"))])
    next(work)
    pressed = Timer(0.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        pressed.start()
        for _ in range(1000):
            list(islice(work, 1)) or two.weights_held()
    work.close()
    same(told(one, method_of("adakv", "30%")), told(two, method_of("adakv", "30%")))


def test_parts_and_more_documents(pair):
    """A document that is read part by part, and one behind it."""
    method, found = method_of("kvzip", "30%"), []
    for engine in pair:
        (cache,) = drain(engine.stream(IDS, Compression(method), Streamed.of(140, 90))).caches
        drain(engine.append(cache, IDS[:40], method))
        found.append(engine.shown(cache))
    kept_alike(*found)


CACHED = {"kvzip": "30%", "full bits=4": "", "pqcache dense_below=0 code_bits=4": "30%"}


@pytest.mark.parametrize(("method", "budget"), CACHED.items())
def test_each_caches_its_part_of_a_document(pair, tmp_path, method, budget):
    """Both files together are the document; one that is damaged, gone or not written is no use."""
    _, two = pair
    (cache,) = drain(two.prefill(IDS, [Compression(method_of(method, budget))])).caches
    where = tmp_path, {"document": "a story"}
    paths = [place(*where, rank) for rank in range(2)]
    took = two.everywhere(stored, cache, *where, IDS, {}, 0)
    assert took == sum(path.stat().st_size for path in paths) and len(set(paths)) == 2
    found = two.everywhere(opened, *where, IDS, 0)
    kept_alike(two.shown(found), two.shown(cache), exact=True)
    logits = [drain(two.extend(each, IDS[3:9])) for each in (found, cache)]
    assert torch.equal(*logits)
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert isinstance(two.everywhere(opened, *where, IDS, 0), Refused)
    paths[1].unlink()
    gone = two.everywhere(opened, *where, IDS, 0)
    assert isinstance(gone, Refused) and "2 of 2" in str(gone)
    paths[1].mkdir()
    assert isinstance(two.everywhere(stored, cache, *where, IDS, {}, 0), OSError)
    kept_alike(two.shown(found), two.shown(cache), exact=True)


def test_an_error_leaves_them_in_step(pair):
    one, two = pair
    with pytest.raises(KvchatError, match="keeps 0 entries"):
        drain(two.prefill(IDS, [Compression(method_of("adakv", "9B"))]))
    same(told(one, method_of("adakv", "30%")), told(two, method_of("adakv", "30%")))


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_few_bits_are_the_same_bits(lead, weights):
    """A matrix is cut between its rows, and each row has its own scales; what a head attends to
    depends on no head beside it."""
    one, two = both(DEMO, lead, weights, "auto")
    ids = random_ids(300, 1200)
    for method in ("adakv", "kvzip"):
        found = [told(engine, method_of(method, "25%"), ids) for engine in (one, two)]
        same(*found)
        assert torch.equal(*(logits for _, _, logits, _ in found))
    assert two.writer.way == one.writer.way == "compiled functions (numba)"


@pytest.mark.parametrize("name", FAMILIES)
def test_families(lead, tmp_path, name):
    """Sliding layers, biases, joined matrices, norms of heads and over all of them."""
    folder = save_model(tmp_path, **({"num_hidden_layers": 3} | CASES[name]))
    one, two = both(folder, lead, kernels="auto")
    found = [told(engine, method_of("adakv", "40%"), count=5) for engine in (one, two)]
    same(*found, exact=False)


def test_each_holds_half(lead):
    one, two = both(DEMO, lead)
    whole = sum(p.nbytes for p in one.model.parameters())
    held = two.weights_held()
    norms = sum(
        p.nbytes for name, p in one.model.named_parameters() if name.endswith("norm.weight")
    )
    assert sum(held) == whole + norms and max(held) < 0.52 * whole
    for engine in (one, two):
        (cache,) = drain(engine.prefill(IDS, [Compression(method_of("full"))])).caches
        kept = engine.held(cache, len(IDS))
        assert max(kept) < 1.1 * sum(kept) / len(kept)
        assert engine.kept(cache, len(IDS)) == [[140] * 4] * 4


def test_heads_that_cannot_be_shared_out(checkpoint):
    config = load_config(checkpoint())
    with pytest.raises(KvchatError) as caught:
        Shard(0, 3).of(config)
    assert caught.value.code == "device" and caught.value.details == {"heads": 2, "devices": 3}
    assert "--devices 2" in caught.value.tries


def test_who_gives_up_what_is_shared_out_waits_for_nobody():
    """The others are in the midst of it: to say anything to them would never end."""
    group = Group(0, 2)
    group.send = Mock()
    first = Lead(group)
    with first.sharing(print, "a"):
        pass
    first.end()
    assert group.send.call_count == 2 and first.lost is None
    with pytest.raises(KeyboardInterrupt), first.sharing(print):
        raise KeyboardInterrupt
    first.end()
    assert group.send.call_count == 3 and first.lost.exit_code == 7


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "[/src/gloo/pair.cc:537] Read error [10.0.0.2]:3192: Connection reset by peer. This is",
            "Read error [10.0.0.2]:3192: Connection reset by peer",
        ),
        ("Failed to recv, got 0 bytes. Did it crash?\nframe 0", "Failed to recv, got 0 bytes"),
        ("", ""),
    ],
)
def test_a_connection_that_breaks(said, told):
    assert broken(RuntimeError(said)) == told


@pytest.mark.parametrize(("outputs", "count"), [(896, 2), (576, 3), (100, 3), (192, 2), (64, 2)])
def test_cuts(outputs, count):
    cuts = Shard(0, count).cuts(outputs)
    assert sum(cuts) == outputs and 0 <= max(cuts) - min(cuts) <= 64 and min(cuts) > 0
    ends = [Shard(rank, count).rows(outputs) for rank in range(count)]
    assert [b - a for a, b in ends] == cuts and ends[0][0] == 0 and ends[-1][1] == outputs


def test_a_plan_of_one_of_two_devices():
    config = load_config(DEMO)
    one = make_plan(Workload(config, 4, 8000, parse_spec("adakv:budget=20%"), 32768, 512, False))
    work = Workload(config, 4, 8000, parse_spec("adakv:budget=20%"), 32768, 512, False, devices=2)
    two = make_plan(work)
    for name in ("weights", "kv_full", "kv_kept", "dense_layer", "tail"):
        assert getattr(two, name) == pytest.approx(getattr(one, name) / 2, rel=0.001), name
    assert two.hidden == one.hidden


def test_one_that_dies_is_told(lead):
    """The last test of this file: after it there is nobody left."""
    _, two = both(DEMO, lead)
    _, others, _ = ranks._begun[0]
    os.kill(others.processes[0].pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(KvchatError, match="rank 1 ended with SIGKILL") as caught:
            told(two, method_of("full"))
        assert caught.value.exit_code == 7 and caught.value.details == {"ranks": 2}
