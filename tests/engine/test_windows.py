"""Sliding layers: attention in a window, what a document leaves of them, and all that is done to a
cache (compress, save, choose, compact, take back) over a model that has some."""

import pytest
import torch

from kvchat.engine.cache.tail import Tail
from kvchat.engine.cache.window import WindowLayer
from kvchat.engine.compaction import folding, watch
from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method
from kvchat.engine.prefill.archive_writer import InMemory
from kvchat.engine.prefill.prefill import Compression
from kvchat.engine.store.cached_document import layers_of, load, save
from tests.engine.test_families import CASES, eager
from tests.engine.tiny import (
    load_engine,
    oracle_logits,
    random_ids,
    read,
    save_model,
    torch_backend,
)
from tests.support.closeness import assert_close

IDS = random_ids(150)
WINDOW, SLIDING, FULL = 20, 5, 1  # of the tiny Gemma 3: six layers, one of them full
METHODS = (
    "adakv:budget=40%,window=8", "snapkv:budget=40%,window=8", "kvzip:budget=40%",
    "kvzip:budget=40%,tell=ask", "kvmerger:budget=50%", "pqcache:budget=40%",
    "h2o:budget=40%", "expected-attention:budget=40%", "pyramidkv:budget=40%,window=8",
    "defensivekv:budget=40%,window=8",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("gemma"), **CASES["gemma3"])


@pytest.fixture(scope="module")
def engine(folder):
    return load_engine(folder, chunk=33)


@pytest.mark.parametrize("tokens, past", [(1, 0), (1, 70), (5, 3), (40, 0), (40, 90), (700, 11)])
@pytest.mark.parametrize("window", [1, 2, 16, 64])
def test_attention_in_a_window(tokens, past, window):
    """As one mask says it, for queries of the newest tokens."""
    generator = torch.Generator().manual_seed(tokens + past)
    heads, group, dim, length = 2, 3, 8, tokens + past
    q = torch.randn(tokens, heads * group, dim, generator=generator)
    k, v = torch.randn(2, heads, length, dim, generator=generator)
    tail = Tail(heads, dim, torch.float32, torch.device("cpu"))
    tail.append(k, v)
    got, _ = WindowLayer(tail, window, torch_backend()).attend(q, 0.3)
    own = torch.arange(past, length)[:, None]
    place = torch.arange(length)[None]
    hidden = (place > own) | (place <= own - window)
    logits = torch.einsum("thgd,hnd->thgn", q.view(tokens, heads, group, dim), k) * 0.3
    weights = logits.masked_fill(hidden[:, None, None], -torch.inf).softmax(-1)
    want = torch.einsum("thgn,hnd->thgd", weights, v).reshape(got.shape)
    assert_close("o", got, want, 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_methods_compress_full_layers_and_leave_windows_alone(engine, method):
    cache, logits = read(engine, IDS, parse_method(method))
    assert_close("prefill", logits, read(engine, IDS)[1], 1e-5)
    assert len(cache.layers) == FULL and len(cache.windows) == SLIDING
    for window in cache.windows.values():
        assert (window.tail.length, window.tail.start) == (WINDOW - 1, len(IDS) - WINDOW + 1)
    if "pqcache" not in method:  # which keeps every entry
        assert cache.kept <= 0.55 * len(IDS) * engine.config.full_heads
    drain(engine.extend(cache, IDS[:7]))
    assert cache.position == len(IDS) + 7


def test_a_full_budget_is_the_full_cache(engine, folder):
    ids = [*IDS, *random_ids(30, seed=5)]
    want = oracle_logits(eager(folder), ids)
    for method in ("adakv:budget=100%", "kvzip:budget=100%"):
        cache, _ = read(engine, IDS, parse_method(method))
        for place in range(len(IDS), len(ids)):
            logits = drain(engine.extend(cache, ids[place : place + 1]))
            assert_close(f"{method} at {place}", logits, want[place], 1e-5)


def test_a_replay_sees_the_document_through_the_window(engine, folder):
    """A probe behind the document, as the document's own continuation."""
    probe = random_ids(40, seed=9)
    compressions = [Compression(parse_method("adakv:budget=40%,window=8"), (0,))]
    found = drain(engine.prefill(IDS, compressions, [probe]))
    want = oracle_logits(eager(folder), [*IDS, *probe])[len(IDS) :]
    assert_close("probe", engine.model.logits(found.asides[0]), want, 1e-5)


def test_a_cached_document_comes_back_with_its_windows(engine, tmp_path):
    method = parse_method("adakv:budget=40%,window=8")
    cache, _ = read(engine, IDS, method)
    layers = layers_of(cache, len(IDS))
    drain(engine.extend(cache, random_ids(60, seed=2)))  # turns change nothing of it
    path = tmp_path / "book.safetensors"
    save(path, engine, layers, IDS, "key", {})
    fresh, _ = read(engine, IDS, method)
    again = load(path, engine, IDS, "key")
    assert torch.equal(engine.score(again, [5, 6, 7]), engine.score(fresh, [5, 6, 7]))
    assert again.memory().total > fresh.memory().total / 4


def test_a_full_copy_chooses_again_beside_the_windows(engine):
    many, few = (parse_method(f"adakv:budget={share}%,window=8") for share in (60, 20))
    archive = InMemory()
    with archive:
        found = drain(engine.prefill(IDS, [Compression(many)], archiving=archive))
    cache = found.caches[0]
    drain(engine.extend(cache, IDS[:5]))
    engine.choose(cache, few)
    want, _ = read(engine, IDS, few)
    drain(engine.extend(want, IDS[:5]))
    # the turn was processed over more entries: only what is chosen is the same
    assert cache.kept == want.kept
    ids = random_ids(9, seed=3)
    logits, _ = drain(engine.extend_choosing(cache, ids, few))
    assert logits.isfinite().all() and cache.position == len(IDS) + 14


def test_compacted_turns_leave_a_window_and_can_be_taken_back(engine):
    method = parse_method("adakv:budget=40%,window=8")
    folds = folding(method, 64)
    cache, _ = read(engine, IDS, method)
    watch(cache, folds, len(IDS))
    turns = random_ids(120, seed=4)
    drain(engine.extend(cache, turns))
    engine.fold(cache, folds, len(IDS), len(IDS) + 80)
    for window in cache.windows.values():
        assert window.tail.start == len(IDS) + 80 - WINDOW + 1
    drain(engine.extend(cache, turns[:30]))
    cache.thaw(len(IDS))
    fresh, _ = read(engine, IDS, method)
    assert torch.equal(engine.score(cache, turns[:5]), engine.score(fresh, turns[:5]))


def test_bytes_are_those_of_the_config(engine):
    cache, _ = read(engine, IDS)
    per_layer = 2 * 2 * 16 * 4
    assert engine.kv_bytes(len(IDS)) == per_layer * (FULL * len(IDS) + SLIDING * WINDOW)
    assert engine.kv_bytes(3) == per_layer * 6 * 3
    assert cache.memory().total - cache.preallocated < 1.1 * engine.kv_bytes(len(IDS)) + 6 * 1000
