"""PQCache in a model: shares of a budget, what it makes of a document, undo, and its K-means."""

import pytest
import torch

from kvchat.engine import ops
from kvchat.engine.budget import Budget, Geometry
from kvchat.engine.cache.pq import PQSegment
from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.pqcache import PQCache, means, train
from kvchat.engine.prefill.archive_writer import InMemory
from kvchat.engine.prefill.prefill import Compression
from kvchat.engine.selection import can_choose
from kvchat.errors import KvchatError
from kvchat.kernels import reference
from tests.engine.scenes import random_scene
from tests.engine.tiny import load_engine, random_ids, read
from tests.support.closeness import assert_close, relative_rms

SPEC = "pqcache:dense_below=0,code_bits=4,sinks=3,block=8"  # codes short documents too


@pytest.mark.parametrize(
    "tokens, share, each",
    [(32768, 0.2, 3273), (32768, 0.1, 1636), (131072, 0.2, 13104), (131072, 0.1, 6552)],
)
def test_the_paper_s_shares(tokens, share, each):
    geometry = Geometry(tokens, heads=8, layers=32, dim=128, itemsize=2)
    reads = parse_method("pqcache@paper", Budget(fraction=share)).shares(geometry)
    assert (reads.window, reads.count, reads.sinks, reads.block) == (each, each, 32, 1)


def test_what_is_read_is_the_budget():
    for budget in ("10%", "500", "40MiB"):
        for tokens in (5000, 12000, 30000):
            geometry = Geometry(tokens, heads=2, layers=4, dim=16, itemsize=4)
            method = parse_method("pqcache", Budget.parse(budget))
            wanted = method.budget.entries(geometry) // 2 * 2
            assert method.entries(geometry) == [2 * tokens] * 4
            reads = method.shares(geometry)
            assert 2 * (reads.sinks + reads.window + reads.count) == wanted


@pytest.mark.parametrize(
    "spec, kinds",
    [(f"{SPEC},dense_layers=1", {"flat", "pq"}), ("pqcache", {"flat"}), (SPEC, {"pq"})],
)
def test_first_layers_and_short_documents_are_read_in_full(engine, spec, kinds):
    cache, _ = read(engine, random_ids(300, seed=1), parse_method(spec, Budget(fraction=0.25)))
    found = [segment.kind for segment in cache.segments()]
    assert set(found) == kinds and found == sorted(found)


def test_options_that_cannot_be():
    geometry = Geometry(5000, heads=2, layers=2, dim=20, itemsize=4)
    for spec, text in (
        ("pqcache:code_bits=9", "code_bits=9"),
        ("pqcache:aggregate=mean", "aggregate=mean"),
        ("pqcache:home=disk", "home=disk"),
        ("pqcache:bits=4", "bits=4"),
        ("pqcache:m=8", "m=8"),
    ):
        with pytest.raises(KvchatError, match=text):
            parse_method(spec).entries(geometry)


def test_documents_are_coded_layer_by_layer(engine):
    """The method makes what the oracles above are about."""
    ids = random_ids(400)
    method = parse_method(SPEC, Budget(fraction=0.25))
    cache, _ = read(engine, ids, method)
    reads = method.shares(Geometry(400, 2, 2, 16, 4))
    assert (reads.sinks, reads.window, reads.count) == (3, 48, 49)
    for layer in cache.layers:
        (segment,) = layer.segments
        assert isinstance(segment, PQSegment) and segment.reads == reads
        assert (segment.span, layer.tail.start, layer.tail.length) == ((0, 352), 352, 48)
        assert torch.equal(
            segment.codes, ops.pq_assign(segment.pool[:, 3:, :16], segment.centroids)
        )
    assert (cache.frozen, cache.kept) == (400, 2 * 2 * 400)


def test_codes_find_more_attention_than_chance_or_the_newest_entries():
    """On made-up heads: mass of PQ's choice against random entries and against the last
    entries.
    """
    scene = random_scene(4, 2, 3000, 1, dim=32)
    method = PQCache(Budget(fraction=0.1), sinks=0, recent=0.0)
    segment = method.compress(scene)
    q = scene.queries[0]
    logits = torch.einsum("hgd,hnd->hgn", q.view(4, 2, 32), scene.keys) * scene.scale
    weight = torch.softmax(logits, dim=-1).sum(dim=1) / 2
    mass = weight.gather(1, segment.choose(q, scene.scale).long()).sum(dim=1)
    best = weight.topk(300, dim=1).values.sum(dim=1)
    assert bool((mass >= weight[:, -300:].sum(dim=1)).all())
    assert float(mass.mean()) > 3 * 0.1 and bool((mass <= best + 1e-6).all())
    assert segment.captured == pytest.approx(float(mass.mean()), abs=0.1)


def test_undo_and_single_tokens_restore_every_answer(engine):
    """Tokens one by one, entries over the window's edge, and back: the same logits, bit for bit."""
    ids = random_ids(460, seed=3)
    cache, _ = read(engine, ids[:400], parse_method(SPEC, Budget(fraction=0.25)))

    def answer(count):
        return torch.stack([drain(engine.extend(cache, [i])) for i in ids[400 : 400 + count]])

    want = answer(60)
    assert cache.layers[0].tail.start > 352
    for position in (400, 417):
        cache.truncate(position)
        got = [drain(engine.extend(cache, [i])) for i in ids[position:460]]
        assert_close("logits", torch.stack(got), want[position - 400 :], 1e-6)
    cache.truncate(400)
    full, _ = read(engine, ids[:400])
    pair = [drain(engine.extend(c, ids[400:])) for c in (cache, full)]
    assert_close("several tokens read every entry", *pair, 1e-6)
    assert relative_rms(want[-1], pair[1]) > 1e-4, "one by one they did not"
    cache.truncate(400)
    assert_close("scores", engine.score(cache, ids[400:], 59)[1:], want[1:], 1e-6)
    assert cache.position == 400


def test_a_question_reads_every_entry_whatever_the_chunk(checkpoint):
    """Also where its last chunk would be a single token."""
    engine, ids = load_engine(checkpoint(), chunk=20), random_ids(441, seed=3)
    cache, _ = read(engine, ids[:400], parse_method(SPEC, Budget(fraction=0.25)))
    full, _ = read(engine, ids[:400])
    got, want = (drain(engine.extend(c, ids[400:])) for c in (cache, full))
    assert_close("logits", got, want, 5e-6)  # chunks of other sizes sum in another order


def test_memory_that_runs_out_while_entries_are_coded_loses_none(engine, monkeypatch):
    ids = random_ids(460, seed=3)
    cache, _ = read(engine, ids[:400], parse_method(SPEC, Budget(fraction=0.25)))
    want = torch.stack([drain(engine.extend(cache, [i])) for i in ids[400:420]])
    cache.truncate(400)
    assign, calls = ops.pq_assign, iter([True])

    def failing(*given):
        if next(calls, False):  # the first layer's entries are coded, the second's are not
            return assign(*given)
        raise MemoryError

    monkeypatch.setattr(ops, "pq_assign", failing)
    with pytest.raises(MemoryError):
        for token in ids[400:420]:
            drain(engine.extend(cache, [token]))
    monkeypatch.undo()
    assert [layer.tail.start for layer in cache.layers] == [360, 352]
    cache.truncate(403)
    got = torch.stack([drain(engine.extend(cache, [i])) for i in ids[403:420]])
    assert_close("logits", got, want[3:], 1e-6)


def test_codes_can_be_made_of_an_archive_too(engine):
    """Chosen in a conversation they equal those of a reading; turns slide on behind them."""
    ids, method = random_ids(420, seed=3), parse_method(SPEC, Budget(fraction=0.25))
    adakv = parse_method("adakv:window=8")
    with InMemory() as archiving:
        reading = engine.prefill(ids[:400], [Compression(adakv)], archiving=archiving)
        cache = drain(reading).caches[0]
    drain(engine.extend(cache, ids[400:]))
    assert can_choose(cache, method)
    engine.choose(cache, method)
    assert not can_choose(cache, adakv), "turns have slid into the document: it is read again"
    assert all(layer.segments[0].span == (0, 368) for layer in cache.layers)
    cache.truncate(400)
    want, _ = read(engine, ids[:400], method)
    for mine, other in zip(cache.layers, want.layers, strict=True):
        assert torch.equal(mine.segments[0].codes, other.segments[0].codes)
        assert torch.equal(mine.segments[0].pool, other.segments[0].pool)
        assert torch.equal(mine.tail.keys, other.tail.keys)
    single = [drain(engine.extend(c, ids[400:401])) for c in (cache, want)]
    assert_close("logits", *single, 1e-6)


def test_an_interrupted_extension_leaves_the_window_as_it_was(engine):
    ids = random_ids(460, seed=3)
    cache, _ = read(engine, ids[:400], parse_method(SPEC, Budget(fraction=0.25)))
    want = drain(engine.extend(cache, ids[400:401]))
    cache.truncate(400)
    reading = engine.extend(cache, ids[400:])
    next(reading)
    reading.close()
    assert cache.position == 400
    assert_close("logits", drain(engine.extend(cache, ids[400:401])), want, 1e-6)


def squared_error(keys: torch.Tensor, centroids: torch.Tensor) -> float:
    """The mean squared distance of keys from what their codes stand for."""
    decoded = reference.pq_decode(ops.pq_assign(keys, centroids), centroids)
    return float((keys - decoded).square().sum(dim=-1).mean())


def test_k_means_by_hand():
    entries = torch.tensor([[[0.0, 0], [0, 1], [4, 0], [4, 1]]])
    for first, wanted, error in (
        ([0, 2], [[0, 0.5], [4, 0.5]], 1.0),
        ([0, 1], [[2, 0], [2, 1]], 16.0),  # a local minimum
    ):
        centroids = entries[:, None, first]
        for _ in range(3):
            codes = ops.pq_assign(entries, centroids)
            centroids = means(entries[:, None], codes, centroids)
        assert centroids[0, 0].tolist() == wanted
        assert 4 * squared_error(entries, centroids) == error


def test_k_means_is_lloyds():
    """The textbook in double precision, head by head and part by part."""
    keys = torch.randn(2, 300, 6, generator=torch.Generator().manual_seed(3))
    parts = keys.unflatten(2, (2, -1)).transpose(1, 2)  # [H, m, N, d]
    centroids = parts[:, :, ::37].clone()
    plain = centroids.double()
    for _ in range(10):
        centroids = means(parts, ops.pq_assign(keys, centroids), centroids)
        for head in range(2):
            for part in range(2):
                entries, book = parts[head, part].double(), plain[head, part]
                nearest = (entries[:, None] - book).square().sum(dim=2).argmin(dim=1)
                found = [entries[nearest == c].mean(dim=0) for c in range(len(book))]
                plain[head, part] = torch.stack(found)
    assert plain.isfinite().all(), "no cluster empties"
    assert (centroids - plain).abs().max() < 1e-4


def test_k_means_descends_and_repeats_itself():
    """A cluster that nobody is in keeps its centroid."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(3, 900, 16, generator=generator).cumsum(dim=1) / 10
    errors = []
    for iters in (0, 1, 2, 4, 8):
        centroids = train(keys, 2, 32, iters, 4321)
        errors.append(squared_error(keys, centroids))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.9 * errors[0]
    assert torch.equal(train(keys, 2, 32, 8, 4321), centroids)
    assert not torch.equal(train(keys, 2, 32, 8, 1), centroids)
    far = torch.full((3, 1, 1, 16), 1e3)
    book = torch.cat((keys[:, None, :4], far), dim=2)
    codes = ops.pq_assign(keys, book)
    assert torch.equal(means(keys[:, None], codes, book)[:, :, 4], far[:, :, 0])


def test_clusters_are_as_good_as_those_of_faiss():
    faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed (a dev extra)")
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(32, 32, generator=generator)
    keys = torch.randn(1, 3000, 32, generator=generator) @ mix
    theirs = faiss.ProductQuantizer(32, 2, 6)
    theirs.cp.niter = 10
    theirs.train(keys[0].numpy())
    decoded = torch.from_numpy(theirs.decode(theirs.compute_codes(keys[0].numpy())))
    want = float((keys[0] - decoded).square().sum(dim=1).mean())
    centroids = train(keys, 2, 64, 10, 4321)
    assert squared_error(keys, centroids) < 1.02 * want
