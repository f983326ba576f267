"""PQCache: its segment by hand, exact limits, bounds, cells against a scan, bytes; entries that
slide into it and back; in a model: shares of a budget, undo, and its K-means."""

import random

import pytest
import torch

from kvchat.engine import ops
from kvchat.engine.budget import Budget, Geometry
from kvchat.engine.cache.cells import PENDING, Cells
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.lookup import Reads
from kvchat.engine.cache.pq import PQSegment
from kvchat.engine.cache.segment import Memory
from kvchat.engine.cache.tail import Tail
from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.kmeans import means, train
from kvchat.engine.methods.pqcache import PQCache
from kvchat.engine.prefill.archive_writer import InMemory
from kvchat.engine.prefill.prefill import Compression
from kvchat.engine.selection import can_choose
from kvchat.errors import KvchatError
from kvchat.kernels import reference
from tests.engine.scenes import assert_same_cache, random_scene
from tests.engine.tiny import load_engine, random_ids, read, torch_backend
from tests.kernels.naive import attention
from tests.kernels.test_ops import CENTROIDS, KEYS, QUERIES
from tests.support.closeness import assert_attention, assert_close, relative_rms

CPU = torch.device("cpu")
VALUES = torch.tensor([[[1.0, 0], [0, 1], [1, 1], [2, 0], [0, 2]]])


def made(keys, values, centroids, reads, start=0) -> PQSegment:
    """A segment of `keys, values [H, N, D]` with a code book."""
    codes = ops.pq_assign(keys[:, reads.sinks :], centroids)
    return PQSegment(torch.cat((keys, values), dim=-1), centroids, codes, reads, start)


def random_segment(heads=2, group=3, entries=300, dim=16, count=40, subspaces=2, size=8, seed=0):
    """A segment with centroids that are some of its keys, and one query."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, heads, entries, dim, generator=generator)
    q = torch.randn(1, heads * group, dim, generator=generator)
    centroids = keys[:, 5 : 5 + size].unflatten(-1, (subspaces, -1)).transpose(1, 2).contiguous()
    return made(keys, values, centroids, Reads(4, 0, count, 1)), keys, values, q


def over(q, keys, values, entries, scale):
    """Exact attention over the entries `entries[h]` of each head."""
    parts = [(keys[h, r], values[h, r], None) for h, r in enumerate(entries)]
    return attention(q, parts, scale)


def test_attention_over_the_chosen_entries_by_hand():
    """Oracle 8.1, with values of two dims in heads of four."""
    values = torch.nn.functional.pad(VALUES, (0, 2))
    for count, o, lse in (
        (3, [[0.457330, 1.023448], [0.123443, 1.006329]], [2.932351, 2.241977]),
        (5, [[0.675558, 0.915210], [0.611727, 0.813387]], [3.170400, 2.656561]),
    ):
        segment = made(KEYS, values, CENTROIDS, Reads(0, 0, count, 1))
        got, got_lse = segment.attend(QUERIES[None], 0.5, torch_backend())
        assert float((got[0, :, :2] - torch.tensor(o)).abs().max()) < 1e-6
        assert float((got_lse[0] - torch.tensor(lse)).abs().max()) < 1e-6
    segment.reads = Reads(0, 0, 3, 1)
    assert segment.choose(QUERIES, 0.5).tolist() == [[0, 1, 4]]


@pytest.mark.parametrize("subspaces, size", [(2, 8), (2, 100), (4, 16)])
def test_one_query_attends_to_sinks_and_to_what_its_codes_rank_first(subspaces, size):
    """With and without an inverted list; missing entries cost at most their attention."""
    segment, keys, values, q = random_segment(subspaces=subspaces, size=size)
    assert (segment.cells is not None) == (size**subspaces <= 4096)
    got = segment.attend(q, 0.25, torch_backend())
    scores = torch.einsum(
        "hgd,hnd->hgn", q.view(2, 3, 16), reference.pq_decode(segment.codes, segment.centroids)
    )
    worth = torch.softmax(scores / 4, dim=-1).sum(dim=1)
    chosen = [[0, 1, 2, 3, *(4 + entry for entry in ops.pq_select(w[None], 40)[0])] for w in worth]
    want = over(q, keys, values, chosen, 0.25)
    assert_attention(got, want)
    full, full_lse = over(q, keys, values, [range(300)] * 2, 0.25)
    missed = 1 - torch.exp(want[1] - full_lse)  # [1, H*G]
    bound = 2 * missed * values.norm(dim=-1).max()
    assert bool(((got[0] - full).norm(dim=-1) <= bound + 1e-5).all())


def test_entries_for_everything_or_several_queries_are_exact_with_any_code_book():
    """By hand, and the declared property of several queries."""
    segment, keys, values, q = random_segment(count=296)
    segment.centroids = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(9))
    want = over(q, keys, values, [range(300)] * 2, 0.25)
    assert_attention(segment.attend(q, 0.25, torch_backend()), want, 1e-6)
    segment.reads = Reads(4, 0, 295, 1)
    assert relative_rms(segment.attend(q, 0.25, torch_backend())[0], want[0]) > 1e-4, "one fewer"
    segment.reads = Reads(4, 0, 10, 1)
    for several in (torch.cat((q, q.flip(1))), torch.cat((q, q.flip(1), q))):
        want = over(several, keys, values, [range(300)] * 2, 0.25)
        assert_attention(segment.attend(several, 0.25, torch_backend()), want)


@pytest.mark.parametrize("aggregate", ["softmax_sum", "max", "logit_sum"])
def test_cells_choose_the_entries_that_a_scan_of_the_codes_chooses(aggregate):
    """With ties inside cells, between them (a rounded table), and where all underflow."""
    generator = torch.Generator().manual_seed(0)
    for heads, group, entries, size, count in (
        (2, 3, 500, 8, 40),
        (3, 1, 400, 4, 399),
        (1, 4, 2000, 64, 1500),
    ):
        codes = torch.randint(size, (heads, entries, 2), dtype=torch.uint8, generator=generator)
        cells = Cells.of(codes[:, : entries - 30], size)
        for end in (entries - 10, entries):
            cells = cells.extended(codes[:, :end], 20 if end < entries else 10, size)
        assert cells.pending.shape[1] == 30
        table = torch.randn(heads, group, 2, size, generator=generator)
        for case in (table, table.round(), 100 * table, 0 * table):
            worth = ops.pq_worth(ops.pq_score(case, codes), aggregate)
            each = cells.worth(case, aggregate)
            assert_close(
                "worth", each.gather(1, codes[..., 0].long() * size + codes[..., 1]), worth, 1e-5
            )
            chosen, gained = cells.select(each, count)
            assert torch.equal(chosen, ops.pq_select(worth, count))
            assert_close("gained", gained, worth.gather(1, chosen.long()).sum(1), 1e-5)


def test_entries_that_wait_are_sorted_in_when_there_are_many():
    codes = torch.randint(8, (2, PENDING + 60, 2), dtype=torch.uint8)
    cells = Cells.of(codes[:, :40], 8).extended(codes[:, :50], 10, 8)
    assert cells.pending.shape == (2, 10)
    cells = cells.extended(codes, PENDING + 10, 8)
    again = Cells.of(codes, 8)
    assert all(torch.equal(tensor, vars(again)[name]) for name, tensor in vars(cells).items())


def test_tensors_are_everything_and_load_is_their_inverse():
    """One byte for each part of a code; bytes are those of the tensors."""
    for subspaces, size, bytes_each in ((2, 8, 2), (4, 16, 4)):
        segment, keys, _, q = random_segment(subspaces=subspaces, size=size)
        assert segment.codes.nbytes == 2 * 296 * bytes_each
        held = Memory.of(segment.tensors().values())
        assert segment.memory() == held + segment.late.memory()
        want = segment.attend(q, 0.25, torch_backend())
        again = PQSegment.load({n: t.clone() for n, t in segment.tensors().items()}, segment.span)
        assert torch.equal(again.attend(q, 0.25, torch_backend())[0], want[0])
        book = segment.centroids, segment.codes, segment.reads, segment.start, segment.cells
        elsewhere = PQSegment(segment.pool.to("meta"), *book)
        entries, total = segment.pool.nbytes, segment.memory().total
        assert elsewhere.memory() == Memory(device=total - entries, host=entries)
        segment.extend(keys[:, :70], keys[:, :70])
        again = PQSegment.load({n: t.clone() for n, t in segment.tensors().items()}, segment.span)
        assert (again.span, again.lengths, again.reads) == ((0, 370), (370, 370), segment.reads)
        both = [s.attend(q, 0.25, torch_backend())[0] for s in (segment, again)]
        assert torch.equal(*both)
        k, _ = segment.withdraw(300)
        assert torch.equal(k, keys[:, :70]) and segment.span == (0, 300)
        assert torch.equal(segment.attend(q, 0.25, torch_backend())[0], want[0])


def test_the_window_by_hand():
    """Oracle 8.1: S 2, W 3, n 10; after token 10 entry 7 is a candidate, with its own code."""
    cache, _ = numbered(entries=10, reads=Reads(2, 3, 1, 1))
    (layer,) = cache.layers
    assert (layer.segments[0].span, layer.tail.start, layer.tail.length) == ((0, 7), 7, 3)
    for token, coded in ((10, 6), (11, 7), (12, 8)):
        step(cache, [token])
        assert layer.segments[0].codes.shape[1] == coded
        assert layer.tail.keys[0, :, 0].tolist() == [token - 2, token - 1, token]
    assert positions(layer.segments[0]) == list(range(10))
    assert (cache.frozen, cache.kept) == (10, 20)


def key_of(tokens) -> torch.Tensor:
    """Keys `[2, T, 4]` that carry their token's number."""
    n = torch.tensor(tokens).float()
    return torch.stack([torch.stack([n, sign * n, n % 7, n % 5], dim=-1) for sign in (1, -1)])


def numbered(entries, reads, layers=1):
    """A cache whose key entries and value entries are `key_of` their positions."""
    cache = KVCache.empty(layers, 2, 4, torch.float32, CPU, torch_backend())
    keys = key_of(range(entries))
    inside = entries - reads.window
    centroids = train(keys[:, reads.sinks : inside], 2, 4, 5, 4321)
    for layer in cache.layers:
        segment = made(keys[:, :inside], -keys[:, :inside], centroids, reads)
        layer.adopt(segment, keys[:, inside:], -keys[:, inside:])
    cache.position = entries
    return cache, centroids


def step(cache, tokens):
    """Feed tokens as `prefill.extend` does."""
    for layer in cache.layers:
        layer.tail.append(key_of(tokens), -key_of(tokens))
        layer.attend(torch.ones(len(tokens), 4, 4), 0.01)
    cache.advance(len(tokens))


def positions(segment):
    return torch.cat((segment.pool[0, :, 0], segment.late.keys[0, :, 0])).tolist()


@pytest.mark.parametrize("block", [1, 64])
def test_entries_are_never_lost_or_doubled_over_a_thousand_tokens(block):
    """Decode, turns and truncation; sink, middle and window are a partition."""
    dice = random.Random(block)
    reads = Reads(3, 20, 15, block)
    cache, centroids = numbered(120, reads, layers=2)
    done = 0
    while done < 1000:
        count = dice.choice([1] * 12 + [5, 90])
        step(cache, range(cache.position, cache.position + count))
        done += count
        if dice.random() < 0.05:
            cache.truncate(dice.randint(max(120, cache.position - 150), cache.position))
        if done % 5:
            continue
        for layer in cache.layers:
            segment, tail = layer.segments[0], layer.tail
            live = tail.keys[0, :, 0].tolist()
            assert positions(segment) + live == list(range(cache.position))
            assert 20 <= len(live) < 20 + block
            assert segment.span == (0, tail.start)
            everything = key_of(range(tail.start))
            assert torch.equal(segment.codes, ops.pq_assign(everything[:, 3:], centroids))
            assert torch.equal(segment.late.values, -everything[:, 100:])
            assert float(segment.cells.count.sum()) == 2 * (tail.start - 3)
            found = segment._fetched(segment.choose(torch.randn(4, 4), 1.0))
            assert torch.equal(found.k, -found.v)
            entries = found.k[:, 0].view(2, -1).long()
            assert entries[:, :3].tolist() == [[0, 1, 2]] * 2
            assert bool((entries.diff(dim=1) > 0).all()) and int(entries.max()) < tail.start
    with pytest.raises(AssertionError, match="120"):
        cache.truncate(119)


def test_a_tail_of_entries_that_slid_is_the_tail_of_what_is_left():
    generator = torch.Generator().manual_seed(0)
    entries = torch.randn(2, 340, 8, generator=generator)
    q = torch.randn(1, 4, 8, generator=generator)
    tail = Tail(2, 8, torch.float32, CPU)
    tail.append(entries[:, :50], entries[:, :50])
    tail.slide(20)
    store = tail.k
    tail.append(entries[:, 50:110], entries[:, 50:110])
    assert tail.k is store and tail.start == 20
    tail.append(entries[:, 110:], entries[:, 110:])
    assert tail.k is not store and torch.equal(tail.keys, entries[:, 20:])
    tail.slide(30)
    tail.prepend(entries[:, 40:50], entries[:, 40:50])
    assert tail.start == 40 and torch.equal(tail.values, entries[:, 40:])
    for slid in (0, 7):
        tail.slide(slid)
        want = over(q, entries, entries, [range(40 + slid, 340)] * 2, 0.3)
        assert_attention(tail.attend(q, 0.3, torch_backend()), want)


SPEC = "pqcache:dense_below=0,code_bits=4,sinks=3,block=8"  # codes short documents too
IDS = random_ids(460, seed=3)
MORE = IDS[400:]


@pytest.fixture
def coded(engine):
    """A document of 400 tokens in codes, and 60 tokens more."""
    return read(engine, IDS[:400], parse_method(SPEC, Budget(fraction=0.25)))[0]


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
    for text in ("code_bits=9", "aggregate=mean", "home=cloud", "bits=4", "m=8"):
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
        codes = ops.pq_assign(segment.pool[:, 3:, :16], segment.centroids)
        assert torch.equal(segment.codes, codes)
    assert (cache.frozen, cache.kept) == (400, 2 * 2 * 400)


def test_codes_find_more_attention_than_chance_or_the_newest_entries():
    """On made-up heads: mass of PQ's choice against random entries and against the last entries."""
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
    decoded = reference.pq_decode(ops.pq_assign(keys, centroids), centroids)
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


def test_entries_on_disk_are_found_as_in_memory(checkpoint):
    """The same answers, and no bytes of entries in memory."""
    engine, ids = load_engine(checkpoint()), random_ids(300, seed=2)
    caches = []
    for home in ("device", "disk"):
        method = PQCache(Budget(fraction=0.2), home=home, dense_below=0, code_bits=4, sinks=4)
        caches.append(drain(engine.prefill(ids, [Compression(method)])).caches[0])
    for token in (5, 9, 11):
        here, there = (drain(engine.extend(cache, [token])) for cache in caches)
        assert torch.equal(here, there)
    held, mapped = (cache.memory() for cache in caches)
    entries = sum(segment.pool.nbytes for segment in caches[1].segments())
    assert mapped.disk == entries > 0 and held.disk == 0
    assert mapped.device == held.device - entries
