"""K-means of keys: by hand, its invariants, and faiss as a second opinion."""

import pytest
import torch

from kvchat.engine import ops
from kvchat.engine.methods.pqcache import means, train


def squared_error(keys: torch.Tensor, centroids: torch.Tensor) -> float:
    """The mean squared distance of keys from what their codes stand for."""
    decoded = ops.pq_decode(ops.pq_assign(keys, centroids), centroids)
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
    """O7: the textbook in double precision, head by head and part by part."""
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
    """O9; a cluster that nobody is in keeps its centroid."""
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
