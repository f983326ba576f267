"""The cache: frozen segments and one live tail per layer.

`SEGMENTS` maps a segment's `kind` to the class whose `load` is the inverse of `tensors()`.
"""

SEGMENTS = {
    "flat": "kvchat.engine.cache.segment:FlatSegment",
    "pq": "kvchat.engine.cache.pq:PQSegment",
    "clusters": "kvchat.engine.cache.clusters:ClusterSegment",
    "keys": "kvchat.engine.cache.keys:KeySegment",
    "low-rank": "kvchat.engine.cache.low_rank:LowRankSegment",
    "mixed": "kvchat.engine.cache.mixed:MixedSegment",
    "quantized": "kvchat.engine.cache.quantized:QuantizedSegment",
}

HOMES = ("device", "host", "disk")
"""Where entries lie that queries choose among."""

AGGREGATES = ("softmax_sum", "max", "logit_sum")
"""How the queries of a group agree on the entries that a decoded token reads."""

GROUP = 32
"""Entries of a key channel, or channels of a value, that share a scale when entries are quantised.
"""
