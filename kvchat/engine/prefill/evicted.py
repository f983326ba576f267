"""What stands for the entries of a layer that were evicted: a few means in each head."""

import torch
from torch import Tensor

from kvchat.engine import ops
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.methods.kmeans import summed, train
from kvchat.engine.peers import Peers

ITERS, SEED = 4, 0  # of K-means
SLICE = 8192  # entries that are numbers in fp32 at a time
LEAST = 1e-8  # of what an entry is worth, or a cluster could have no weight


class Evicted:
    """The evicted entries of a layer, summed up by clusters of its keys: C of them, those of the
    first head first.

    `weight, count [C]` and `keys, values [C, D]` are fp32 sums over what was evicted of each
    cluster, all but `count` weighed by what an entry was worth: what matters most is least to be
    missed. `most [C]` is what the best of them was worth, `at [C]` its position. Clusters are found
    among all keys of the layer, so in whatever order entries go, the sums are the same but for
    rounding. Ours; log.md has what was tried.
    """

    def __init__(self, keys: Tensor, means: int, peers: Peers):
        """`means` clusters of each head of `keys [H, T, D]`, T at least as many."""
        heads, _, dim = keys.shape
        self.means = means
        centroids = train(keys, 1, means, ITERS, SEED, peers)
        first = torch.arange(0, heads * means, means, device=keys.device)[:, None]
        codes = ops.pq_assign(keys, centroids)[:, :, 0].long()
        self.clusters = (codes + first).flatten()  # of the entries that stay
        self.weight = centroids.new_zeros(heads * means)
        self.count, self.most = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
        self.at = torch.zeros_like(self.weight, dtype=torch.int32)
        self.keys = centroids.new_zeros(heads * means, dim)
        self.values = torch.zeros_like(self.keys)

    def take(self, segment: FlatSegment, stays: Tensor, worth: Tensor) -> None:
        """Take in the entries of a segment for which `stays [R]` is false; all are `worth [R]`."""
        gone = (~stays).nonzero()[:, 0]
        worth = worth[gone].clamp_min(LEAST)
        worth = worth.masked_fill(worth > torch.finfo(worth.dtype).max / 2, LEAST)
        split = (tensor.split(SLICE) for tensor in (gone, self.clusters[gone], worth))
        for entry, cluster, weight in zip(*split, strict=True):
            self._add(segment, entry, cluster, weight)
        self.clusters = self.clusters[stays]

    def _add(self, segment: FlatSegment, entry: Tensor, cluster: Tensor, weight: Tensor) -> None:
        """Add what stands at `entry [n]` of a segment to clusters `cluster [n]`."""
        size = torch.bincount(cluster, minlength=len(self.count))
        order = torch.argsort(cluster, stable=True)  # the entries of one cluster after the other
        weights, begins = weight[order], size.cumsum(dim=0) - size
        for sums, entries in ((self.keys, segment.k), (self.values, segment.v)):
            sums += summed(entries.index_select(0, entry).float(), order, begins, weights)
        self.weight += summed(weight[:, None], order, begins)[:, 0]
        self.count += size
        most = self.most.scatter_reduce(0, cluster, weight, "amax")
        best = weight == most[cluster]  # of equal ones the first
        end = torch.full_like(self.at, segment.span[1])
        at = end.scatter_reduce(0, cluster[best], segment.position[entry[best]], "amin")
        self.at, self.most = torch.where(most > self.most, at, self.at), most

    def among(self, segment: FlatSegment) -> FlatSegment:
        """The segment of all entries that stay, and in each head the mean of every cluster that has
        lost some, where the best of these was. It counts in the softmax as often as they are."""
        there = self.count > 0
        k, v = (each[there] / self.weight[there][:, None] for each in (self.keys, self.values))
        end = segment.span[1]
        counts, dtype = there.view(-1, self.means).sum(dim=1).tolist(), segment.k.dtype
        bias = self.count[there].log()
        means = FlatSegment.of(k.to(dtype), v.to(dtype), counts, self.at[there], (end, end), bias)
        return segment.joined(means).in_time()
