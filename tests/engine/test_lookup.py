"""Entries that are found by clusters or by their keys: numbers by hand, a scan as the twin, what
slides in and goes back, where entries are at home."""

from dataclasses import replace

import pytest
import torch

from kvchat.engine.budget import Budget, Geometry
from kvchat.engine.cache.cells import Cells
from kvchat.engine.cache.clusters import ClusterSegment, Level
from kvchat.engine.cache.keys import KeySegment
from kvchat.engine.cache.lookup import Reads
from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.squeezed import Squeezed
from tests.engine.scenes import random_scene
from tests.engine.tiny import load_engine, random_ids, read, torch_backend
from tests.kernels.naive import attention
from tests.support.closeness import assert_attention, assert_close

Q = torch.tensor([[1.0, 0.0]])
SPECS = (
    "squeezed:dense_below=0,sinks=3,block=8,clusters=0.1",
    "squeezed:dense_below=0,sinks=3,block=8,clusters=0.1,levels=2,coarse=0.04,per=head",
    "kcache:dense_below=0,sinks=3,block=8",
)


def logs(*weights: float) -> torch.Tensor:
    """Keys `[1, N, 2]` of one head to which `Q` gives such weights."""
    return torch.stack((torch.tensor(weights).log(), torch.zeros(len(weights))), dim=-1)[None]


def test_kcache_by_hand():
    """Weights 1, 8, 2, 4: the two best values are those of 8 and 4, so that they are 2/3 and 1/3,
    and the log-sum-exp is ln 12; they have 12/15 of the attention."""
    values = torch.tensor([[[9.0, 9], [1, 0], [7, 7], [0, 1]]])
    segment = KeySegment(logs(1, 8, 2, 4), values, Reads(0, 0, 2, 1), 0)
    assert segment.choose(Q, 1.0).tolist() == [[1, 3]]
    assert segment.captured == pytest.approx(12 / 15)
    o, lse = segment.attend(Q[None], 1.0, torch_backend())
    assert_close("o", o[0, 0], torch.tensor([2 / 3, 1 / 3]), 1e-6)
    assert float(lse) == pytest.approx(2.4849066)
    # the first entry is a sink: it and the best other one
    segment = KeySegment(segment.keys, values, Reads(1, 0, 1, 1), 0)
    o, lse = segment.attend(Q[None], 1.0, torch_backend())
    assert_close("o", o[0, 0], torch.tensor([9 / 9 + 8 / 9, 1.0]), 1e-6)
    both = segment.attend(Q.expand(2, 1, 2), 1.0, torch_backend())[1]
    assert float(both[0]) == pytest.approx(2.7080502), "several queries read everything: ln 15"


def clustered(bound: float, coarse: Level | None = None) -> ClusterSegment:
    """Clusters whose centroids have weights 4, 2 and 1, of entries 0, 2, 5; 1, 3; 4."""
    keys = logs(4, 2, 4, 2, 1, 4)
    codes = torch.tensor([[0, 1, 0, 1, 2, 0]])[..., None].int()
    pool = torch.cat((keys, torch.arange(12.0).view(1, 6, 2)), dim=-1)
    reads, bounds = Reads(0, 0, 3, 1), torch.tensor([bound])
    return ClusterSegment(pool, logs(4, 2, 1)[:, None], codes, reads, 0, bounds, coarse)


@pytest.mark.parametrize("bound, chosen", [(0.2, [0, 2, 5]), (0.1, [0, 1, 2, 3, 5]), (0.3, [])])
def test_squeezed_attention_by_hand(bound, chosen):
    """An entry at a centroid would get 4, 2 or 1 of 3*4 + 2*2 + 1 = 17 parts: .24, .12, .06."""
    segment = clustered(bound)
    assert segment.choose(Q, 1.0).tolist() == [chosen]
    assert segment.captured == pytest.approx(sum((4, 2, 4, 2, 1, 4)[n] for n in chosen) / 17)
    o, lse = segment.attend(Q[None], 1.0, torch_backend())
    entries = segment.pool[0, chosen]
    want = attention(Q[None], [(entries[:, :2], entries[:, 2:], None)], 1.0)
    assert_attention((o, lse), want)
    assert segment.read_entries == len(chosen)


def test_a_level_above_by_hand():
    """The first two clusters belong to one of weight 3, the last to one of weight 2: an entry is
    worth 3 and 2 of 5*3 + 2 = 17 parts, .18 and .12. Where the second one is shut, the others share
    16 parts."""
    owner, centroids = torch.tensor([[0, 0, 1]]).int(), logs(3, 2)[:, None]
    level = Level(centroids, owner, torch.tensor([0.15]))
    segment = clustered(0.0, level)
    assert segment.choose(Q, 1.0).tolist() == [[0, 1, 2, 3, 5]]
    assert segment.captured == pytest.approx(1.0)
    assert clustered(0.24, level).choose(Q, 1.0).tolist() == [[0, 2, 5]], "4/16 passes"
    closed = level.closed(Q, 1.0, "softmax_sum", segment.cells.count)
    assert closed.tolist() == [[False, False, True]]


@pytest.mark.parametrize(
    "per, wanted, bounds",
    [("head", 3, [4 / 17, 0.1]), ("head", 4, [4 / 17, 0.1]), ("head", 5, [2 / 17, 0.1]),
     ("head", 1, [4 / 17, 0.5]), ("layer", 3, [2 / 17] * 2), ("layer", 4, [0.1] * 2)],
)  # fmt: skip
def test_bounds_by_hand(per, wanted, bounds):
    """Clusters of 3, 2, 1 entries, and of 1, 2, 6: together .5 (1), .24 (3), .12 (2), .1 (2)."""
    worth = torch.tensor([[[4 / 17, 2 / 17, 1 / 17], [0.5, 0.1, 0.05]]])
    count = torch.tensor([[3.0, 2, 1], [1, 2, 6]])
    found = Squeezed(per=per)._bound(worth, count, wanted)
    assert found.tolist() == pytest.approx(bounds)


def test_the_budget_pays_for_centroids():
    """Of 100 entries that a token may read of 2,000, in 16 bits: a centroid takes as much as one,
    so there are 33 of them, and 67 entries are left; with 400 there are 5 % of 2,000, 100."""
    geometry = Geometry(tokens=2000, heads=2, layers=2, dim=64, itemsize=2)
    for budget, clusters in ((100, 33), (400, 100)):
        method = Squeezed(Budget(entries_per_head=budget), sinks=4)
        reads = method.shares(geometry)
        assert method.centroids(budget, geometry) == clusters
        assert reads.sinks + reads.window + reads.count == budget - clusters


def test_keys_are_clustered_by_direction():
    keys = torch.tensor([[[1.0, 0], [0, 1], [10, 0], [0, 3]]])
    centroids, codes = Squeezed()._clustered(keys, 2)
    first, second = codes[0, 0, 0], codes[0, 1, 0]
    assert codes[0, :, 0].tolist() == [first, second, first, second] and first != second
    assert centroids[0, 0, [first, second]].tolist() == [[5.5, 0], [0, 2]]


def test_what_passes_is_what_a_scan_finds():
    """Entries that wait outside of the list, clusters without entries, heads that read nothing."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 9, (3, 200, 1), generator=generator)
    more = torch.randint(0, 9, (3, 20, 1), generator=generator)
    both = torch.cat((codes, more), dim=1)
    cells = Cells.of(codes, 10).extended(both, 20, 10)
    worth = torch.rand(3, 10, generator=generator)
    bound = torch.tensor([0.5, 2.0, 0.0])
    chosen, mass = cells.above(worth, bound)
    each = worth.gather(1, both[..., 0])
    for head in range(3):
        want = (each[head] >= bound[head]).nonzero()[:, 0].tolist()
        got = chosen[head].tolist()
        assert got == want + [-1] * (len(got) - len(want))
        assert float(mass[head]) == pytest.approx(float(each[head][want].sum()), rel=1e-5)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("per", ["head", "layer"])
def test_the_last_queries_read_the_budget(per, levels):
    """A bound is as low as it may be for that; heads of a layer differ if it is the layer's."""
    scene = random_scene(4, 2, 900, 60, dim=16)
    method = Squeezed(Budget(fraction=0.2), per=per, levels=levels, dense_below=0, coarse=0.02)
    segment = method.compress(scene)
    for q in scene.queries:
        segment.choose(q, scene.scale)
    read, reads = segment.found / len(scene.queries) / 4, segment.reads
    assert 0.9 * reads.count <= read <= reads.count
    assert len(set(segment.bound.tolist())) == (1 if per == "layer" else 4)
    assert segment.read_entries == pytest.approx(reads.sinks + reads.window + read, abs=1)


@pytest.mark.parametrize("spec", SPECS)
def test_entries_slide_in_and_go_back(engine, spec):
    """Tokens one by one, entries over the window's edge, and back: the same logits, bit for bit."""
    ids, method = random_ids(460, seed=3), parse_method(spec, Budget(fraction=0.25))
    cache, _ = read(engine, ids[:400], method)

    def written(some):
        return torch.stack([drain(engine.extend(cache, [token])) for token in some])

    want = written(ids[400:])
    assert cache.layers[0].tail.start > 352 and cache.kept == 2 * 2 * cache.frozen
    for position in (400, 417):
        cache.truncate(position)
        assert torch.equal(written(ids[position:]), want[position - 400 :])


@pytest.mark.parametrize("spec", SPECS)
def test_entries_on_disk_are_found_as_in_memory(checkpoint, spec):
    engine, ids = load_engine(checkpoint()), random_ids(300, seed=2)
    there, away = (f"{spec},home={home}" for home in ("device", "disk"))
    methods = (parse_method(each, Budget(fraction=0.2)) for each in (there, away))
    caches = [read(engine, ids, method)[0] for method in methods]
    for token in (5, 9, 11):
        assert torch.equal(*(drain(engine.extend(cache, [token])) for cache in caches))
    held, mapped = (cache.memory() for cache in caches)
    entries = sum(segment.pool.nbytes for segment in caches[1].segments())
    assert mapped.disk == entries > 0 and held.disk == 0
    assert mapped.device == held.device - entries


def test_values_are_half_of_what_kcache_keeps_at_home(checkpoint):
    method = replace(parse_method(SPECS[2]), budget=Budget(fraction=0.2), home="disk")
    cache, _ = read(load_engine(checkpoint()), random_ids(300, seed=2), method)
    for segment in cache.segments():
        assert segment.keys.nbytes == segment.pool.nbytes == segment.memory().disk
