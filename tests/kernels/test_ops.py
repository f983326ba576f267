"""Operations against formulas and their twins, among them the oracle of the Ada-KV paper and those
of PQCache by hand, exact limits, bounds, faiss as a second opinion; parts put together."""

import itertools
import math

import pytest
import torch

from kvchat.engine import ops
from kvchat.kernels import reference
from tests.engine.scenes import oracle_scene
from tests.kernels.naive import attention, per_head, random_entries
from tests.support.closeness import assert_attention, assert_close, assert_lse_close


def test_column_mass_of_the_oracle():
    """Oracle S of the Ada-KV specification."""
    scene, mean = oracle_scene(), [[0.20, 0.15, 0.25, 0.10], [0.70, 0.0375, 0.0625, 0.075]]
    k, given = scene.keys, (scene.lse, scene.seen, scene.scale)
    got = ops.column_mass(scene.queries, k, *given) / 2
    assert_close("mass", got[:, :4], torch.tensor(mean), 1e-6)
    assert_close("query 5 alone sees key 5", got[:, 5], torch.tensor([0.10, 0.025]), 1e-6)
    q = scene.queries.clone()
    q[:, 1] = q[:, 1].flip(0)  # two query heads of one KV head
    _, lse = reference.dense_attention(q, k[:1], k[:1], scene.scale, causal=True)
    got = ops.column_mass(q, k[:1, :4], lse, *given[1:]) / 2
    mean = torch.tensor([0.2085, 0.1357, 0.2151, 0.0960])
    best = torch.tensor([0.2169, 0.15, 0.25, 0.10])
    assert float((got.mean(dim=0) - mean).abs().max()) < 6e-5
    assert float((got.max(dim=0).values - best).abs().max()) < 6e-5


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("values", [1, 24, 100, 2**22])
def test_column_mass_in_slices_is_the_same(monkeypatch, values, power):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(3, 8, 16, generator=generator), torch.randn(2, 63, 16, generator=generator)
    _, lse = reference.dense_attention(q, k, k, 0.25, causal=True)
    seen = torch.tensor([61, 62, 63])
    want = reference.column_mass(q, k, lse, seen, 0.25, power)
    monkeypatch.setattr(ops, "MASS_VALUES", values)
    assert_close("mass", ops.column_mass(q, k, lse, seen, 0.25, power), want, 1e-6)
    if power == 1:
        assert_close("all of it", want.sum(dim=1), torch.full((8,), 3.0), 1e-6)


@pytest.mark.parametrize("group, dim, power", [(1, 16, 1), (2, 32, 2), (4, 80, 1), (8, 128, 2)])
def test_column_mass_of_all_queries_is_the_materialised_column_sum(group, dim, power):
    """All causal queries together give T in all per query head."""
    generator = torch.Generator().manual_seed(group)
    tokens, scale = 77, dim**-0.5
    q = torch.randn(tokens, 2 * group, dim, generator=generator)
    k = torch.randn(2, tokens, dim, generator=generator)
    _, lse = reference.dense_attention(q, k, k, scale, causal=True)
    logits = torch.einsum("thd,hnd->htn", q, k.repeat_interleave(group, 0)) * scale
    hidden = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    want = logits.masked_fill(hidden, float("-inf")).softmax(-1).pow(power).sum(1)
    got = ops.column_mass(q, k, lse, torch.arange(1, tokens + 1), scale, power)
    assert_close("column sums", got, want, 1e-5)
    if power == 1:
        assert_close("in all", got.sum(1), torch.full((2 * group,), float(tokens)), 1e-5)


def test_rms_norm_is_its_formula_and_its_twin():
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    weight = torch.linspace(0.5, 2, 48)
    want = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    assert_close("ops", ops.rms_norm(x, weight, 1e-5), want, 1e-6)
    assert_close("twin", reference.rms_norm(x, weight, 1e-5), want, 1e-6)
    half = ops.rms_norm(x.bfloat16(), weight.bfloat16(), 1e-5)
    assert half.dtype == torch.bfloat16
    assert_close("bf16", half, want, 8e-3)


def test_rope_turns_each_pair_by_its_angle():
    x = torch.randn(7, 3, 16, generator=torch.Generator().manual_seed(0))
    phase = torch.rand(7, 8, generator=torch.Generator().manual_seed(1)) * 6
    got = ops.rope(x, phase.cos(), phase.sin())
    pairs = torch.complex(x[..., :8].double(), x[..., 8:].double())
    turned = pairs * torch.exp(1j * phase.double())[:, None]
    assert_close("rope", got, torch.cat((turned.real, turned.imag), dim=-1), 1e-6)


def test_swiglu_is_its_formula():
    gate, up = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0)).unbind()
    want = gate.double() / (1 + torch.exp(-gate.double())) * up
    assert_close("swiglu", ops.swiglu(gate, up), want, 1e-6)


BOTH = pytest.mark.parametrize("combine", [reference.combine, ops.combine], ids=["twin", "ops"])


@BOTH
@pytest.mark.parametrize("cuts", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_combine_of_any_split_is_the_whole(combine, seed, cuts):
    generator = torch.Generator().manual_seed(seed)
    store = random_entries([50] * 2, 16, seed=seed)
    q = torch.randn(3, 4, 16, generator=generator)
    k, v = store.k.view(2, 50, 16), store.v.view(2, 50, 16)
    places = torch.randint(51, (cuts,), generator=generator).sort().values.tolist()
    edges = [0, *places, *places[2:], 50]  # of three cuts one part is always empty
    parts = [
        reference.dense_attention(q, k[:, a:b], v[:, a:b], 0.25, causal=False)
        for a, b in itertools.pairwise(edges)
    ]
    assert_attention(combine(parts), attention(q, per_head(store), 0.25), 1e-6)


@BOTH
def test_combine_survives_logits_far_beyond_the_range_of_exp(combine):
    o = [torch.full((1, 1, 2), value) for value in (1.0, 3.0)]
    lse = torch.full((1, 1), 500.0)
    joined, total = combine([(o[0], lse), (o[1], lse)])
    # a float32 near 500 has steps of 3e-5, and so has a weight that is a difference of two
    assert_close("o", joined, torch.full((1, 1, 2), 2.0), 3e-5)
    assert_lse_close("lse", total, lse + torch.log(torch.tensor(2.0)), 1e-4)


@BOTH
@pytest.mark.parametrize("empty", [0, 1, 2])
def test_a_part_without_entries_counts_for_nothing(combine, empty):
    """The first, the second, or both."""
    some = (torch.randn(2, 3, 4), torch.randn(2, 3))
    nothing = (torch.zeros(2, 3, 4), torch.full((2, 3), float("-inf")))
    parts = [(nothing, some), (some, nothing), (nothing, nothing)][empty]
    o, lse = combine(list(parts))
    want = nothing if empty == 2 else some
    assert torch.equal(o, want[0]) and torch.equal(lse, want[1])


# Oracle 8.1: H 1, G 2, D 4, m 2, C 2, scale 1/2
CENTROIDS = torch.tensor([[[[1.0, 0], [0, 1]], [[1, 1], [-1, 1]]]])
KEYS = torch.tensor([[[1.2, 0.1, 0.9, 1.0], [0.1, 0.8, -1.1, 1.2], [0.9, -0.1, -0.8, 0.9],
                      [0.0, 1.1, 1.0, 0.8], [1.1, 0.2, 1.1, 1.1]]])  # fmt: skip
QUERIES = torch.tensor([[2.0, 0, 1, 1], [0, 2, -1, 1]])


def random_codes(heads, entries, dim, subspaces, count, seed=0, dtype=torch.float32):
    """Keys `[H, N, D]`, queries `[2 H, D]` and centroids `[H, m, C, d]`."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(heads, entries, dim, generator=generator, dtype=dtype)
    q = torch.randn(2 * heads, dim, generator=generator, dtype=dtype)
    size = (heads, subspaces, count, dim // subspaces)
    return keys, q, torch.randn(size, generator=generator, dtype=dtype)


def test_retrieval_by_hand():
    codes = ops.pq_assign(KEYS, CENTROIDS)
    assert codes.dtype == torch.uint8
    assert codes[0].tolist() == [[0, 0], [1, 1], [0, 1], [1, 0], [0, 0]]
    table = ops.pq_table(QUERIES, CENTROIDS, 0.5)
    assert (2 * table[0]).tolist() == [[[2, 0], [2, 0]], [[0, 2], [0, 2]]]
    scores = ops.pq_score(table, codes)
    assert scores[0].tolist() == [[2, 0, 1, 1, 2], [0, 2, 1, 1, 0]]
    worth = ops.pq_worth(scores, "softmax_sum")
    wanted = torch.tensor([[0.415750, 0.545535, 0.311482, 0.311482, 0.415750]])
    assert float((worth - wanted).abs().max()) < 1e-6
    best = ops.pq_worth(scores, "max")
    wanted = torch.tensor([[0.3483, 0.4984, 0.1834, 0.1834, 0.3483]])
    assert float((best - wanted).abs().max()) < 5e-5
    assert ops.pq_worth(scores, "logit_sum")[0].tolist() == [2, 2, 2, 2, 2]
    chosen = [ops.pq_select(worth, k)[0].tolist() for k in (1, 2, 3, 4)]
    assert chosen == [[1], [0, 1], [0, 1, 4], [0, 1, 2, 4]]


def test_centroids_that_are_the_rows_score_exactly():
    """O1: as many centroids as entries."""
    for subspaces in (1, 2, 4, 8):
        keys, q, _ = random_codes(3, 50, 16, subspaces, 1)
        centroids = keys.unflatten(-1, (subspaces, -1)).transpose(1, 2)  # [H, m, N, d]
        codes = ops.pq_assign(keys, centroids)
        got = ops.pq_score(ops.pq_table(q, centroids, 0.25), codes)
        want = torch.einsum("hgd,hnd->hgn", q.view(3, 2, 16), keys) / 4
        assert_close("scores", got, want, 1e-6)
        assert torch.equal(reference.pq_decode(codes, centroids), keys)


def test_one_sub_space_per_channel_scores_a_grid_exactly():
    """O3: keys on 2^b values in every channel."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(16, (2, 300, 8), generator=generator).float() / 4 - 2
    grid = (torch.arange(16).float() / 4 - 2).view(1, 1, 16, 1).expand(2, 8, 16, 1)
    q = torch.randn(4, 8, generator=generator)
    got = ops.pq_score(ops.pq_table(q, grid, 1.0), ops.pq_assign(keys, grid))
    assert_close("scores", got, torch.einsum("hgd,hnd->hgn", q.view(2, 2, 8), keys), 1e-6)


@pytest.mark.parametrize("subspaces, count", [(2, 64), (4, 256), (1, 7), (16, 3)])
def test_a_score_is_the_product_with_the_decoded_row(subspaces, count):
    """O4, with the bound of Cauchy and Schwarz; codes are the argmin of the distance."""
    keys, q, centroids = random_codes(2, 400, 32, subspaces, count)
    codes = ops.pq_assign(keys, centroids)
    decoded = reference.pq_decode(codes, centroids)
    scores = ops.pq_score(ops.pq_table(q, centroids, 32**-0.5), codes)
    grouped = q.view(2, 2, 32)
    assert_close("scores", scores, torch.einsum("hgd,hnd->hgn", grouped, decoded) / 32**0.5, 1e-5)
    exact = torch.einsum("hgd,hnd->hgn", grouped, keys) / math.sqrt(32)
    bound = grouped.norm(dim=-1)[:, :, None] * (keys - decoded).norm(dim=-1)[:, None] / 32**0.5
    assert bool(((scores - exact).abs() <= bound + 1e-5).all())
    parts = keys.view(2, 400, subspaces, -1).transpose(1, 2)
    nearest = torch.cdist(parts, centroids).argmin(dim=-1).transpose(1, 2)
    assert float((nearest == codes).float().mean()) > 0.999, "ties of rounding apart"


def test_rows_are_selected_by_worth_then_by_position():
    generator = torch.Generator().manual_seed(0)
    for entries, count in ((1, 1), (63, 20), (500, 499), (500, 500), (40, 0)):
        worth = torch.randint(6, (3, entries), generator=generator).float()  # many ties
        wanted = [
            sorted(sorted(range(entries), key=lambda entry, w=w: (-w[entry], entry))[:count])
            for w in worth.tolist()
        ]
        assert ops.pq_select(worth, count).tolist() == wanted


@pytest.mark.parametrize("subspaces, bits", [(2, 6), (4, 8)])
def test_faiss_agrees(subspaces, bits):
    """O6: our centroids in faiss's ProductQuantizer; codes, bit packing, decoding and tables."""
    faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed (a dev extra)")
    dim, count = 32, 2**bits
    keys, q, centroids = random_codes(1, 2000, dim, subspaces, count, seed=3)
    quantizer = faiss.ProductQuantizer(dim, subspaces, bits)
    faiss.copy_array_to_vector(centroids[0].flatten().numpy(), quantizer.centroids)
    packed = quantizer.compute_codes(keys[0].numpy())
    codes = ops.pq_assign(keys, centroids)[0]
    if bits == 8:
        theirs = torch.from_numpy(packed)
    else:  # 2 x 6 bits, the lowest first
        word = torch.from_numpy(packed[:, 0].astype("int64") + 256 * packed[:, 1].astype("int64"))
        theirs = torch.stack((word & 63, (word >> 6) & 63), dim=1)
    assert torch.equal(theirs.long(), codes.long())
    decoded = torch.from_numpy(quantizer.decode(packed))
    assert torch.equal(decoded, reference.pq_decode(codes[None], centroids)[0])
    products = torch.zeros(2, subspaces, count)
    queries, out = (faiss.swig_ptr(x.numpy()) for x in (q, products))
    quantizer.compute_inner_prod_tables(2, queries, out)
    assert_close("tables", ops.pq_table(q, centroids, 1.0)[0], products, 1e-5)
