"""What stands for the entries of a layer that were evicted: a few means in each head."""

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods.kmeans import train
from kvchat.engine.peers import Peers

ITERS, SEED = 8, 0  # of K-means
SLICE = 8192  # entries that are numbers in fp32 at a time
LEAST = 1e-8  # of what an entry is worth, or a cluster could have no weight


class Evicted:
    """The evicted entries of a layer, summed up by clusters of its keys.

    `weight, count [H, C]` and `keys, values [H, C, D]` are fp32 sums over what was evicted of each
    cluster, all but `count` weighed by what an entry was worth: what matters most is least to be
    missed. `most [H, C]` is what the best of them was worth, `at [H, C]` its position. Clusters are
    found among all keys of the layer, so in whatever order entries go, the sums are the same but
    for rounding. Ours; log.md has what was tried.
    """

    def __init__(self, keys: Tensor, means: int, peers: Peers):
        """`means` clusters of `keys [H, T, D]`, T at least as many."""
        heads, _, dim = keys.shape
        centroids = train(keys, 1, means, ITERS, SEED, peers)
        self.codes = ops.pq_assign(keys, centroids)[:, :, 0].flatten()  # of the entries that stay
        self.weight = centroids.new_zeros(heads, means)
        self.count, self.most = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
        self.at = torch.zeros(heads, means, dtype=torch.int32, device=keys.device)
        self.keys = centroids.new_zeros(heads, means, dim)
        self.values = torch.zeros_like(self.keys)

    def take(self, segment: FlatSegment, stays: Tensor, worth: Tensor) -> None:
        """Take in the entries of a segment for which `stays [R]` is false; all are `worth [R]`."""
        worth = worth.clamp_min(LEAST).masked_fill(worth > torch.finfo(worth.dtype).max / 2, LEAST)
        number = torch.arange(self.weight.shape[1], device=stays.device)
        for head, (first, length) in enumerate(zip(segment.ends, segment.lengths, strict=False)):
            gone = (~stays[first : first + length]).nonzero()[:, 0] + first
            for some in gone.split(SLICE) if len(gone) else ():
                of = (self.codes[some] == number[:, None]).float()  # [C, n]
                part = of * worth[some]
                self.count[head] += of.sum(dim=1)
                self.weight[head] += part.sum(dim=1)
                self.keys[head] += part @ segment.k[some].float()
                self.values[head] += part @ segment.v[some].float()
                most, best = part.max(dim=1)
                better = most > self.most[head]
                self.most[head] = torch.where(better, most, self.most[head])
                at = segment.position[some[best]]
                self.at[head] = torch.where(better, at, self.at[head])
        self.codes = self.codes[stays]

    def among(self, segment: FlatSegment) -> FlatSegment:
        """The segment of all entries that stay, and in each head the mean of every cluster that has
        lost some, where the best of these was. It counts in the softmax as often as they are."""
        there = self.count > 0
        k, v = (each[there] / self.weight[there][:, None] for each in (self.keys, self.values))
        end = segment.span[1]
        counts, dtype = there.sum(dim=1).tolist(), segment.k.dtype
        bias = self.count[there].log()
        means = FlatSegment.of(k.to(dtype), v.to(dtype), counts, self.at[there], (end, end), bias)
        return segment.joined(means).in_time()
