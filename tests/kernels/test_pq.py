"""Product quantisation: the oracles of the PQCache specification by hand, exact limits, bounds, and
faiss as a second opinion."""

import math

import pytest
import torch

from kvchat.engine import ops
from tests.support.closeness import assert_close

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
        assert torch.equal(ops.pq_decode(codes, centroids), keys)


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
    decoded = ops.pq_decode(codes, centroids)
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
    assert torch.equal(decoded, ops.pq_decode(codes[None], centroids)[0])
    products = torch.zeros(2, subspaces, count)
    queries, out = (faiss.swig_ptr(x.numpy()) for x in (q, products))
    quantizer.compute_inner_prod_tables(2, queries, out)
    assert_close("tables", ops.pq_table(q, centroids, 1.0)[0], products, 1e-5)
