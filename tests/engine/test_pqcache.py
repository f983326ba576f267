"""PQCache in a model: shares of a budget, what it makes of a document, undo, and its K-means."""

import pytest
import torch

from kvchat.engine import ops
from kvchat.engine.budget import Budget, Geometry
from kvchat.engine.cache.pq import PQSegment
from kvchat.engine.events import drain
from kvchat.engine.methods.pqcache import PQCache, means, train
from kvchat.engine.methods.spec import parse_method
from kvchat.engine.prefill.archive_writer import InMemory
from kvchat.engine.prefill.prefill import Compression
from kvchat.engine.selection import can_choose
from kvchat.errors import KvchatError
from tests.engine.scenes import assert_same_cache, random_scene
from tests.engine.tiny import load_engine, random_ids, read
from tests.support.closeness import assert_close, relative_rms

SPEC = "pqcache:dense_below=0,code_bits=4,sinks=3,block=8"  # codes short documents too
IDS = random_ids(460, seed=3)
MORE = IDS[400:]


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
            assert method.reads(geometry) == [wanted] * 4
    quality = parse_method("pqcache@quality", Budget(fraction=0.1))
    assert quality.reads(geometry) == [60000, 60000, 6000, 6000]
    short = Geometry(1000, heads=2, layers=2, dim=16, itemsize=4)
    assert parse_method("pqcache").reads(short) == [2000, 2000], "too little to choose from"


def test_options_that_cannot_be():
    geometry = Geometry(5000, heads=2, layers=2, dim=20, itemsize=4)
    for text in ("code_bits=9", "aggregate=mean", "home=disk", "bits=4", "m=8"):
        with pytest.raises(KvchatError, match=text):
            parse_method(f"pqcache:{text}").entries(geometry)


def test_documents_are_coded_layer_by_layer(coded):
    method, cache = parse_method(SPEC, Budget(fraction=0.25)), coded
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


@pytest.fixture
def coded(engine):
    """A document of 400 tokens in codes, and 60 tokens more."""
    return read(engine, IDS[:400], parse_method(SPEC, Budget(fraction=0.25)))[0]


def one_by_one(engine, cache, ids):
    return torch.stack([drain(engine.extend(cache, [i])) for i in ids])


def test_undo_and_single_tokens_restore_every_answer(engine, coded):
    """Tokens one by one, entries over the window's edge, and back: the same logits, bit for bit;
    also after an extension that was interrupted."""
    want = one_by_one(engine, coded, MORE)
    assert coded.layers[0].tail.start > 352
    for position in (400, 417):
        coded.truncate(position)
        got = one_by_one(engine, coded, IDS[position:])
        assert_close("logits", got, want[position - 400 :], 1e-6)
    coded.truncate(400)
    reading = engine.extend(coded, MORE)
    next(reading)
    reading.close()
    assert coded.position == 400
    full, _ = read(engine, IDS[:400])
    pair = [drain(engine.extend(c, MORE)) for c in (coded, full)]
    assert_close("several tokens read every entry", *pair, 1e-6)
    assert relative_rms(want[-1], pair[1]) > 1e-4, "one by one they did not"
    coded.truncate(400)
    assert_close("scores", engine.score(coded, MORE, 59)[1:], want[1:], 1e-6)
    assert coded.position == 400


def test_a_question_reads_every_entry_whatever_the_chunk(checkpoint):
    """Also where its last chunk would be a single token."""
    engine = load_engine(checkpoint(), chunk=20)
    methods = parse_method(SPEC, Budget(fraction=0.25)), None
    caches = [read(engine, IDS[:400], method)[0] for method in methods]
    got, want = (drain(engine.extend(cache, MORE[:41])) for cache in caches)
    assert_close("logits", got, want, 5e-6)  # chunks of other sizes sum in another order


def test_memory_that_runs_out_while_entries_are_coded_loses_none(engine, coded, monkeypatch):
    want = one_by_one(engine, coded, MORE[:20])
    coded.truncate(400)
    assign, calls = ops.pq_assign, iter([True])

    def failing(*given):
        if next(calls, False):  # the first layer's entries are coded, the second's are not
            return assign(*given)
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(ops, "pq_assign", failing)
        one_by_one(engine, coded, MORE[:20])
    assert [layer.tail.start for layer in coded.layers] == [360, 352]
    coded.truncate(403)
    assert_close("logits", one_by_one(engine, coded, MORE[3:20]), want[3:], 1e-6)


def test_codes_can_be_made_of_an_archive_too(engine, coded):
    """Chosen in a conversation they equal those of a prefill; turns slide on behind them."""
    method, adakv = parse_method(SPEC, Budget(fraction=0.25)), parse_method("adakv:window=8")
    with InMemory() as archiving:
        reading = engine.prefill(IDS[:400], [Compression(adakv)], archiving=archiving)
        cache = drain(reading).caches[0]
    drain(engine.extend(cache, MORE[:20]))
    assert can_choose(cache, method)
    engine.choose(cache, method)
    assert not can_choose(cache, adakv), "turns have slid into the document: it is read again"
    assert all(layer.segments[0].span == (0, 368) for layer in cache.layers)
    cache.truncate(400)
    assert_same_cache(cache, coded)
    assert torch.equal(*(c.layers[1].tail.keys for c in (cache, coded)))
    single = [drain(engine.extend(c, MORE[:1])) for c in (cache, coded)]
    assert_close("logits", *single, 1e-6)


def squared_error(keys: torch.Tensor, centroids: torch.Tensor) -> float:
    """The mean squared distance of keys from what their codes stand for."""
    decoded = ops.pq_decode(ops.pq_assign(keys, centroids), centroids)
    return float((keys - decoded).square().sum(dim=-1).mean())


def test_k_means_is_lloyds():
    """The textbook in double precision, head by head and part by part."""
    keys = torch.randn(2, 300, 6, generator=torch.Generator().manual_seed(3))
    parts = keys.unflatten(2, (2, -1)).transpose(1, 2)  # [H, m, N, d]
    centroids = parts[:, :, ::37].clone()
    plain = centroids.double().flatten(0, 1)
    for _ in range(10):
        centroids = means(parts, ops.pq_assign(keys, centroids), centroids)
        for entries, book in zip(parts.double().flatten(0, 1), plain, strict=True):
            nearest = (entries[:, None] - book).square().sum(dim=2).argmin(dim=1)
            book.copy_(torch.stack([entries[nearest == c].mean(dim=0) for c in range(len(book))]))
    assert plain.isfinite().all(), "no cluster empties"
    assert (centroids.flatten(0, 1) - plain).abs().max() < 1e-4


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
